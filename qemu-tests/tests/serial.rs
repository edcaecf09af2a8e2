//! The serial line of a machine, without one.

use std::time::Duration;

use qemu_tests::serial::Serial;

#[test]
fn lines_are_found_once_and_without_control_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let said = b"\x1b[2J\x1b[01;01Hone\r\ntwo \x1b[1mbold\x1b[0m\r\nrest".as_slice();
    let mut serial = Serial::new(said, std::io::sink(), &folder.path().join("log")).unwrap();
    assert_eq!(serial.wait("o b", Duration::from_secs(5)).unwrap(), "two bold");
    let error = serial.wait("one", Duration::from_secs(5)).unwrap_err().to_string();
    assert!(error.contains("the machine ended") && error.ends_with("one\ntwo bold\nrest"), "{error}");
    assert_eq!(std::fs::read(folder.path().join("log")).unwrap(), said);
}
