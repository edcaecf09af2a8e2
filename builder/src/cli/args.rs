//! The command line as typed: every option has help, every command an example.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::emit::OutputFormat;

/// Compile a profile into a bootable platform image, without root, loop devices or KVM.
#[derive(Debug, Parser)]
#[command(name = "chasi-bod", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Examples:\n  chasi-bod new site --output site.yaml\n  chasi-bod build site.yaml --format qcow2,raw\n  chasi-bod run site.yaml\n\n\
    Exit codes: 0 done, 1 your input, 2 our fault, 3 the surroundings (network, disk, a missing tool)."
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
    /// Folder of the content-addressed store.
    #[arg(long, global = true, env = "CHASI_BOD_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Print results as JSON on stdout.
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
        chasi-bod lock site.yaml --update openssl    # this one and what it forces")]
    Lock(LockArgs),
    /// Build the image and write its artifacts to output/<profile>/<version>/.
    #[command(after_help = "Examples:\n  chasi-bod build site.yaml --format qcow2,raw\n  chasi-bod build site.yaml --locked --offline")]
    Build(BuildArgs),
    /// Build the image and boot it in QEMU with serial console; ssh on a forwarded port.
    #[command(after_help = "Example:\n  chasi-bod run site.yaml --ssh-port 2222 --firmware uefi")]
    Run(RunArgs),
    /// Show partitions, boot files and slots of a disk image.
    #[command(after_help = "Example:\n  chasi-bod inspect output/minimal/0.1.0/minimal-0.1.0.qcow2")]
    Inspect(ImageArg),
    /// Check artifacts against SHA256SUMS, build record and verity; names partition and offset of a difference.
    #[command(after_help = "Example:\n  chasi-bod verify output/minimal/0.1.0")]
    Verify(FileArg),
    /// Print the JSON schema of profiles or layers, for editors.
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
    /// Look after the store of downloads and results.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  chasi-bod completions bash > /etc/bash_completion.d/chasi-bod")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages of all commands into a folder.
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

/// Options of `lock`.
#[derive(Clone, Debug, Args)]
pub struct LockArgs {
    /// Profile to read.
    #[command(flatten)]
    pub profile: ProfileArg,
    /// Move packages to their newest versions: these, or all when none is named.
    #[arg(long, value_name = "PACKAGE", num_args = 0..)]
    pub update: Option<Vec<String>>,
    /// Show what would change and write nothing.
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
    /// Show what would be done and write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Leave raw images out of SHA256SUMS: hashing their empty gigabytes takes longer than writing them. `verify` covers them all the same.
    #[arg(long)]
    pub no_raw_sum: bool,
    /// The node binary (`chasi-bod-node`); beside this command when absent.
    #[arg(long, env = "CHASI_BOD_NODE", value_name = "FILE")]
    pub node_binary: Option<PathBuf>,
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
    /// Memory in MiB.
    #[arg(long, default_value_t = 2048)]
    pub memory: u32,
    /// Port on loopback that leads to the machine's ssh.
    #[arg(long, default_value_t = 2222)]
    pub ssh_port: u16,
    /// A public key file that may log in as root.
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Option<PathBuf>,
    /// Keep what the machine writes in this disk file instead of throwing it away.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Build, print the QEMU command and do not start it.
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
}

/// Firmware of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// A disk image.
#[derive(Clone, Debug, Args)]
pub struct ImageArg {
    /// Disk image, raw or QCOW2.
    pub path: PathBuf,
}

/// A file or folder.
#[derive(Clone, Debug, Args)]
pub struct FileArg {
    /// Folder of artifacts, or one artifact beside its build record.
    pub path: PathBuf,
}

/// Commands on the store.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Show what the store holds, by kind.
    List,
    /// Remove what no lock below these folders needs, unfinished downloads and scratch files.
    Prune {
        /// Folders with locks whose packages stay; the current folder when absent.
        keep: Vec<PathBuf>,
        /// Show what would go and remove nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy the packages of a profile's lock into a folder that serves as `--cache` of a machine without network.
    Export {
        /// Profile whose lock is exported.
        profile: PathBuf,
        /// Target folder.
        dir: PathBuf,
    },
}
