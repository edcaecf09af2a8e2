//! Entry point of the initramfs's `init`.

fn main() {
    firstboot::init::main()
}
