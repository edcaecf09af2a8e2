//! The command line as typed: every option has help, every command an example.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use layers::Fault;

use super::config::ConfigCommand;
use crate::compare::Level;
use crate::emit::OutputFormat;

/// Exit code of `compare` for a fault of the user's input, as 1 means that the images differ.
pub const COMPARE_INPUT: u8 = 4;

/// Compile a profile into a bootable platform image, without root, loop devices or KVM.
#[derive(Debug, Parser)]
#[command(name = "chasi-bod", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Examples:\n  chasi-bod new site --output site.yaml\n  chasi-bod build site.yaml --format qcow2,raw\n  chasi-bod run site.yaml\n\n\
    Exit codes: 0 done, 1 your input, 2 our fault, 3 the surroundings (network, disk, a missing tool).\n\
    Of `compare`: 0 equal, 1 different, 4 your input."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Folder of the store, which keeps downloads and results; `$XDG_CACHE_HOME/chasi-bod` or `~/.cache/chasi-bod` when absent.
    #[arg(long, global = true, env = "CHASI_BOD_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Print results as JSON on stdout; a failure as `{"error": {message, causes, hint, exitCode, diagnostics}}`.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the image would hold; nothing is fetched or written.
    #[command(after_help = "Example:\n  chasi-bod plan profiles/minimal.yaml")]
    Plan(ProfileArg),
    /// Resolve every package to version and digest and write the lock beside the profile.
    #[command(after_help = "Examples:\n  chasi-bod lock site.yaml\n  chasi-bod lock site.yaml --update            # all packages\n  \
        chasi-bod lock site.yaml --update openssl    # this one and what it forces\n  \
        chasi-bod lock site.yaml --offline           # from the indices that the store holds")]
    Lock(LockArgs),
    /// Build the image and write its artifacts to output/<profile>/<version>/.
    #[command(
        after_help = "Examples:\n  chasi-bod build site.yaml --format qcow2,raw\n  chasi-bod build site.yaml --dry-run          # what is fetched and written\n  \
        chasi-bod build site.yaml --locked --offline"
    )]
    Build(BuildArgs),
    /// Build the image and boot it in QEMU with serial console; ssh on a forwarded port.
    #[command(
        after_help = "Examples:\n  chasi-bod run site.yaml --ssh-key ~/.ssh/id_ed25519.pub\n  chasi-bod run site.yaml --ssh-port 2222 --firmware uefi --accel kvm\n  \
        chasi-bod run site.yaml --print              # the QEMU command, for this or another machine\n\nLeave the machine with Ctrl-A X."
    )]
    // What boots here is a QCOW2 disk.
    #[command(mut_arg("formats", |arg| arg.hide(true)), mut_arg("raw_sum", |arg| arg.hide(true)), mut_arg("ova_key", |arg| arg.hide(true)))]
    Run(RunArgs),
    /// Show partitions, loaders, kernels, packages, images and charts of a disk image, or the files of its root file system.
    #[command(
        after_help = "Examples:\n  chasi-bod inspect site-1.0.0.qcow2\n  chasi-bod inspect site-1.0.0.qcow2 --files            # all files of the root\n  \
        chasi-bod inspect site-1.0.0.raw --files '/etc/**'    # quoted, so that the shell leaves it alone\n  \
        chasi-bod inspect site-1.0.0.raw --files '*.service' --json\n  chasi-bod inspect site-1.0.0.iso --packages\n  chasi-bod inspect site-1.0.0.qcow2 --cat /etc/os-release"
    )]
    Inspect(InspectArgs),
    /// Check artifacts against SHA256SUMS, build record and verity; names every file, partition and offset that differs.
    #[command(after_help = "Examples:\n  chasi-bod verify output/minimal/0.1.0\n  chasi-bod verify output/minimal/0.1.0/minimal-0.1.0.qcow2")]
    Verify(FileArg),
    /// Show what two images have differently: disk, packages, container images, charts, configuration and files.
    #[command(after_help = "Examples:\n  chasi-bod compare output/site/1.0.0 output/site/1.1.0\n  \
        chasi-bod compare site-1.0.0.qcow2 site-1.0.0.iso    # formats are no difference\n  \
        chasi-bod compare site-1.0.0.raw site-1.1.0.raw --only packages,images --json\n\n\
        Exit codes: 0 equal, 1 different, 2 our fault, 3 the surroundings, 4 your input.")]
    Compare(CompareArgs),
    /// Put a build's artifacts into a container registry, as an OCI artifact.
    #[command(after_help = "Examples:\n  chasi-bod push output/site/1.0.0 registry.example/platform/site:1.0.0\n  \
        chasi-bod push output/site/1.0.0 localhost:5000/site:1.0.0 --dry-run    # what would be sent, and the digest")]
    Push(PushArgs),
    /// Get a build's artifacts from a container registry; what is there is kept, what broke off goes on.
    #[command(after_help = "Examples:\n  chasi-bod pull registry.example/platform/site:1.0.0 --output site-1.0.0\n  \
        chasi-bod pull registry.example/platform/site:1.0.0 --file site-1.0.0.iso --file SHA256SUMS")]
    Pull(PullArgs),
    /// Show what clusters get from an image: releases of charts and container images, and why each is there.
    #[command(
        subcommand,
        after_help = "Examples:\n  chasi-bod seed list profiles/standalone.yaml\n  chasi-bod seed list output/standalone/0.1.0 --json"
    )]
    Seed(SeedCommand),
    /// Day 2, with the credentials of a kubeconfig.
    #[command(flatten)]
    Day2(firstboot::verbs::Command),
    /// Print the JSON schema of profiles, layers or the platform's objects, for editors.
    #[command(after_help = "Examples:\n  chasi-bod schema > profile.schema.json\n  chasi-bod schema --of layer > layer.schema.json")]
    Schema {
        /// Which files it is for.
        #[arg(long, value_enum, default_value_t = SchemaOf::Profile)]
        of: SchemaOf,
    },
    /// Print a commented profile to start from, or write it with its schema.
    #[command(
        after_help = "Examples:\n  chasi-bod new site --output site.yaml    # and profile.schema.json beside it\n  chasi-bod new site > site.yaml"
    )]
    New {
        /// Name of the image.
        name: String,
        /// Write the profile here and its schema beside it; nothing is overwritten.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Make media that tell nodes their settings.
    #[command(subcommand, after_help = "Example:\n  chasi-bod config image site.yaml --output site.img")]
    Config(ConfigCommand),
    /// Look after the store of downloads and results.
    #[command(
        subcommand,
        after_help = "Examples:\n  chasi-bod cache list\n  chasi-bod cache prune ~/profiles --dry-run\n  chasi-bod cache export site.yaml /media/usb/store"
    )]
    Cache(CacheCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  chasi-bod completions bash > /etc/bash_completion.d/chasi-bod")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages of all commands into a folder.
    #[command(after_help = "Example:\n  chasi-bod man /usr/local/share/man/man1")]
    Man {
        /// The folder; made when missing.
        dir: PathBuf,
    },
}

/// A profile.
#[derive(Clone, Debug, Args)]
pub struct ProfileArg {
    /// Profile to read.
    #[arg(value_name = "PROFILE")]
    pub profile: PathBuf,
}

/// Where registries are asked.
#[derive(Clone, Debug, Args)]
pub struct RegistryArgs {
    /// Ask a container registry at another address: `docker.io=https://mirror.example`; a path of it comes before the image's. Repeat it for more.
    #[arg(long = "registry", env = "CHASI_BOD_REGISTRIES", value_name = "HOST=URL", value_delimiter = ',')]
    pub registries: Vec<String>,
}

/// Options of `push`.
#[derive(Clone, Debug, Args)]
pub struct PushArgs {
    /// Result folder, output/<profile>/<version>.
    pub folder: PathBuf,
    /// Registry, repository and tag.
    pub reference: String,
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Only say what would be sent, and the digest.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `pull`.
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// Registry, repository and tag or digest.
    pub reference: String,
    /// Folder for the files; made when missing.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Only this file; repeat it for more.
    #[arg(long = "file", value_name = "NAME")]
    pub files: Vec<String>,
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// Options of `lock`.
#[derive(Clone, Debug, Args)]
pub struct LockArgs {
    /// Profile to read.
    #[command(flatten)]
    pub profile: ProfileArg,
    /// Move packages to their newest versions and images to what their tags stand for: these, or all when none is named.
    #[arg(long, value_name = "PACKAGE|IMAGE", num_args = 0..)]
    pub update: Option<Vec<String>>,
    /// Use the indices that the store holds; touch no network.
    #[arg(long)]
    pub offline: bool,
    /// Where registries are asked.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Show what would change and write no lock.
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `build`, and of `run` for the build before it.
#[derive(Clone, Debug, Args)]
pub struct BuildArgs {
    /// Profile to read.
    #[command(flatten)]
    pub profile: ProfileArg,
    /// Formats to write.
    #[arg(long = "format", short, value_delimiter = ',', value_name = "FORMAT", default_value = "qcow2", value_parser = format_parser())]
    pub formats: Vec<OutputFormat>,
    /// Folder for results.
    #[arg(long, short, default_value = "output", value_name = "DIR")]
    pub output: PathBuf,
    /// Refuse to write or change the lock.
    #[arg(long)]
    pub locked: bool,
    /// Use only what the store holds; touch no network.
    #[arg(long)]
    pub offline: bool,
    /// Where registries are asked.
    #[command(flatten)]
    pub registries: RegistryArgs,
    /// Show whether the lock is current, what would be fetched and which artifacts would be written; touch nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Put the digests of whole raw images into SHA256SUMS too, which hashes their empty gigabytes; their block maps (bmap) are always in it.
    #[arg(long)]
    pub raw_sum: bool,
    /// The node binary (`chasi-bod-node`, made by `make tools`); looked for beside this command when absent.
    #[arg(long, env = "CHASI_BOD_NODE", value_name = "FILE")]
    pub node_binary: Option<PathBuf>,
    /// Sign the OVA: PEM file with an RSA key and its certificate, which importers show as the publisher.
    #[arg(long, value_name = "FILE")]
    pub ova_key: Option<PathBuf>,
    /// Sign what firmware starts, for a profile with `boot.secureBoot: own-keys`: PEM file with an RSA key and its certificate, which the firmware must know.
    #[arg(long, env = "CHASI_BOD_SECURE_BOOT_KEY", value_name = "FILE")]
    pub secure_boot_key: Option<PathBuf>,
    /// Where the key lies elsewhere (PKCS #11, a key service): a shell command that reads a SHA-256, 32 bytes, and writes its RSASSA-PKCS1-v1_5
    /// signature. The file then needs the certificate only.
    #[arg(long, env = "CHASI_BOD_SECURE_BOOT_COMMAND", value_name = "COMMAND", requires = "secure_boot_key")]
    pub secure_boot_command: Option<String>,
}

/// Names of the formats, for help and completion too.
fn format_parser() -> impl TypedValueParser<Value = OutputFormat> {
    PossibleValuesParser::new(OutputFormat::ALL.map(OutputFormat::extension)).try_map(|name| name.parse::<OutputFormat>())
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The build.
    #[command(flatten)]
    pub build: BuildArgs,
    /// Firmware to boot with.
    #[arg(long, value_enum, default_value_t = Firmware::Bios)]
    pub firmware: Firmware,
    /// How the processor is run: emulated, which works everywhere, or by KVM, which is much faster. Not chosen by itself, because a
    /// /dev/kvm that exists may still hang.
    #[arg(long, value_enum, default_value_t = Accel::Tcg, env = "CHASI_BOD_ACCEL")]
    pub accel: Accel,
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048)]
    pub memory: u32,
    /// Port on loopback that leads to the machine's ssh.
    #[arg(long, default_value_t = 2222)]
    pub ssh_port: u16,
    /// A public key file that may log in as root.
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Option<PathBuf>,
    /// Keep what the machine writes in this disk file instead of throwing it away; a file that is there already is booted as it is.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Build, print the QEMU command and do not start it; QEMU need not be installed.
    #[arg(long)]
    pub print: bool,
}

/// What a schema is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// Profiles.
    Profile,
    /// `layer.yaml` of layers.
    Layer,
    /// Manifests of virtual clusters, their templates, components, snapshots and restores.
    Object,
}

/// Firmware of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// What runs the processor of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// QEMU's emulator.
    Tcg,
    /// The kernel's virtual machines; needs access to /dev/kvm.
    Kvm,
}

/// Options of `inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Disk image: any format that `build` writes, or another raw, QCOW2, VMDK, OVA or VMA disk with a GPT.
    #[arg(value_name = "IMAGE")]
    pub path: PathBuf,
    /// List the files of the root file system: type, mode, owner, size, path and link target. A pattern with `/` is of whole paths (`**`
    /// crosses folders), one without of names.
    #[arg(long, value_name = "GLOB", num_args = 0..=1)]
    pub files: Option<Option<String>>,
    /// Write one file of the root file system to stdout as it is; links are followed inside the image.
    #[arg(long, value_name = "PATH", conflicts_with = "files")]
    pub cat: Option<String>,
    /// List the Debian packages of the root file system: name, version and architecture.
    #[arg(long, conflicts_with_all = ["files", "cat"])]
    pub packages: bool,
    /// The partition whose files are meant; the first root when absent.
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
}

/// Options of `compare`.
#[derive(Clone, Debug, Args)]
pub struct CompareArgs {
    /// An image of any format, ours or another GPT disk, or a result folder, output/<profile>/<version>.
    pub a: PathBuf,
    /// The image that is compared with it.
    pub b: PathBuf,
    /// Compare this alone; all when absent. What a level cannot read it names. Files below /etc are told by `config`; times are not compared.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LEVEL")]
    pub only: Vec<Level>,
}

impl Command {
    /// Exit code of a fault of the user's input: 1 says that images differ where they are compared.
    pub fn input_code(&self) -> u8 {
        if matches!(self, Self::Compare(_)) { COMPARE_INPUT } else { Fault::Input as u8 }
    }
}

/// A file or folder.
#[derive(Clone, Debug, Args)]
pub struct FileArg {
    /// Folder of artifacts, or one artifact beside its build record.
    pub path: PathBuf,
}

/// Commands on the seed.
#[derive(Debug, Subcommand)]
pub enum SeedCommand {
    /// Show every chart and image, who asks for it and its size: of a profile by its lock, or of a built image.
    #[command(
        after_help = "Examples:\n  chasi-bod seed list profiles/standalone.yaml\n  chasi-bod seed list output/standalone/0.1.0/standalone-0.1.0.qcow2"
    )]
    List {
        /// Profile, disk image, or folder of artifacts.
        #[arg(value_name = "PROFILE|IMAGE")]
        path: PathBuf,
    },
}

/// Commands on the store.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show what the store holds: number and bytes by kind.
    #[command(after_help = "Example:\n  chasi-bod cache list --json")]
    List,
    /// Remove what no lock below these folders needs: downloads that none names, contents and results that the newest build of none used, and Go's caches.
    #[command(after_help = "Examples:\n  chasi-bod cache prune --dry-run              # for the locks below the current folder\n  \
        chasi-bod cache prune ~/profiles ~/other\n\nNothing is removed while another chasi-bod uses the store. What a build needs again is fetched or made again.\n--json names every file.")]
    Prune {
        /// Folders with locks for which things stay; the current folder when absent.
        keep: Vec<PathBuf>,
        /// Show what would go and remove nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy the packages and indices of a profile's lock into a folder that serves as the store of a machine without network.
    #[command(
        after_help = "Example:\n  chasi-bod cache export site.yaml /media/usb/store\n  chasi-bod build site.yaml --locked --offline --cache /media/usb/store    # there"
    )]
    Export {
        /// Profile whose lock is exported.
        profile: PathBuf,
        /// Target folder.
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn check(command: &clap::Command, path: &str) {
        let name = format!("{path} {}", command.get_name());
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example"), "{name} has no example in its help");
        assert!(help.contains("chasi-bod "), "{name}: {help}");
        for option in command.get_arguments().filter(|a| !a.is_hide_set()) {
            assert!(option.get_help().is_some(), "{name}: {} has no help", option.get_id());
        }
        command.get_subcommands().for_each(|sub| check(sub, &name));
    }

    #[test]
    fn every_command_has_examples_and_every_option_help() {
        Cli::command().debug_assert();
        check(&Cli::command(), "");
    }

    #[test]
    fn the_verbs_of_day_2_share_the_options_of_every_command() {
        let parse = |line: &str| Cli::try_parse_from(["chasi-bod"].into_iter().chain(line.split(' '))).unwrap_or_else(|e| panic!("{line}: {e}"));
        for line in ["vcluster list --json", "--json vcluster list", "vcluster --json list", "vcluster --kubeconfig a list --json"] {
            let cli = parse(line);
            let Command::Day2(firstboot::verbs::Command::Vcluster(of)) = cli.command else { panic!("{line}") };
            assert!(cli.global.json && format!("{:?}", of.verb) == "List { json: true }", "{line}: {of:?}");
            assert_eq!(of.kubeconfig.is_some(), line.contains("--kubeconfig"), "{line}");
        }
        assert!(!parse("vcluster connect biz -- kubectl get pods --json").global.json, "the command's own options");
        assert!(parse("vcluster create biz --version v1.36.3 --wait --timeout 90s --quiet").global.quiet);
    }
}
