//! Installs the image that runs from a medium on a disk of the machine: choose the disk, check the image, write, read again, and only then give
//! the disk its partition table. A machine that loses power in between has no half system to start; the medium starts over.

mod esp;
mod firmware;
mod screen;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use layers::selector::{Selector, Traits};
use layers::{Context as _, Error, Result};

use crate::host::Host;
use crate::init::{live, report};
use crate::steps::systemctl;
use crate::{config, disks};
use source::Source;
use target::Target;

/// Waits this long for a disk that is meant: drivers and USB take their time.
const PATIENCE: Duration = Duration::from_secs(60);

const LOCK: &str = "run/chasi-bod/install.lock";
/// There when an installation has been finished.
const DONE: &str = "run/chasi-bod/installed";

/// What a person or unit asks for.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// Which disk, an expression such as `serial == "S3Z9"`; the setting `disk.target` when absent, and a question when there is none.
    #[arg(long, value_name = "EXPRESSION")]
    disk: Option<String>,
    /// Consents to lose what is on the disk.
    #[arg(long)]
    erase: bool,
    /// Asks nothing; the disk must be given.
    #[arg(long)]
    yes: bool,
    /// Restarts the machine when all is done.
    #[arg(long)]
    reboot: bool,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// How the disk was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consent {
    /// Nothing is known to be lost.
    Empty,
    /// What is on the disk may be lost.
    Erase,
}

/// A line for people. Who stands at the machine may look at either console.
fn say(text: &str) {
    let line = format!("chasi-bod: install: {text}");
    let at_console = rustix::termios::ttyname(std::io::stdin(), Vec::new()).is_ok_and(|name| name.as_bytes().starts_with(b"/dev/tty"));
    if at_console { report::print(&format!("{line}\r\n")) } else { println!("{line}") }
}

/// Installs.
pub fn run(host: &Host, options: &Options) -> Result<()> {
    let source = Source::open(host)?;
    let image = host.image()?;
    let what = format!("{} {}", image.name, image.version);
    let settings = config::collect(host, &image)?.settings;
    let wanted = options.disk.clone().map(Selector::try_from).transpose().map_err(|why| Error::input(format!("--disk {why}")))?;
    let by_hand = options.disk.is_some();
    let wanted = wanted.or(settings.target.map(|target| target.value));
    let erase = options.erase || !by_hand && settings.erase.value;
    let consent = if erase { Consent::Erase } else { Consent::Empty };
    let choice = match wanted {
        Some(wanted) => {
            let Some(turn) = turn(host, by_hand)? else { return Ok(()) };
            prepare(host, &source, &wanted, consent).map(|target| (turn, target))
        }
        None => Err(Error::input("choosing a disk: none is named").with_hint("give `--disk`, or set `disk.target`")),
    };
    let (_turn, mut target) = match choice {
        Ok((turn, target)) => {
            if by_hand && !options.yes && !options.dry_run {
                screen::confirm(&target.disk, &what)?;
            }
            (turn, target)
        }
        // Nobody asked for this disk just now: who stands at the machine may choose another one.
        Err(error) if !by_hand && !options.yes && std::io::stdin().is_terminal() => {
            screen::tell(&error);
            let target = screen::choose(host, &source, &what)?;
            let Some(turn) = turn(host, by_hand)? else { return Ok(()) };
            (turn, target)
        }
        Err(error) => return Err(error),
    };
    if options.dry_run {
        say(&format!("{what} would be installed on {}, which holds {}", disks::describe(&target.disk), target.holds()));
        return Ok(());
    }
    install(host, efivar::system, &source, &mut target, &what, &config::carried(host, &image)?)?;
    host.write(DONE, b"", 0o600)?;
    if options.reboot {
        say("restarting; the medium may be taken out now");
        systemctl(host, &["reboot"])?;
    }
    Ok(())
}

/// Two consoles may show the installer: the second one waits for its turn, and has none when all is done, unless a person names one more disk.
fn turn(host: &Host, by_hand: bool) -> Result<Option<File>> {
    let path = host.path(LOCK);
    let doing = || format!("locking {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(&path).context(doing)?;
    if file.try_lock().is_err() {
        say("another console installs; waiting for it");
        file.lock().context(doing)?;
    }
    if !by_hand && host.path(DONE).exists() {
        say("it is done, from another console");
        return Ok(None);
    }
    Ok(Some(file))
}

/// Waits for the disk that is meant and checks that it can be used.
fn prepare(host: &Host, source: &Source, wanted: &Selector, consent: Consent) -> Result<Target> {
    let start = Instant::now();
    loop {
        let all = candidates(host);
        match disks::select(&all, wanted) {
            Ok(disk) => return Target::open(host, source, disk, consent),
            Err(error) if start.elapsed() > PATIENCE || all.iter().any(|disk| wanted.picks(disk) == Ok(true)) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    }
}

/// The disks that can be installed to at all: a medium cannot, least of all the one that this system came from.
fn candidates(host: &Host) -> Vec<Traits> {
    disks::all(host).into_iter().filter(|disk| !live::is_medium(&host.path(&disk.path))).collect()
}

/// `said` are files of the state that the system has from the first.
fn install(host: &Host, variables: firmware::Variables, source: &Source, target: &mut Target, what: &str, said: &[(String, Vec<u8>)]) -> Result<()> {
    let start = Instant::now();
    say(&format!("{what} on {}", disks::describe(&target.disk)));
    // All that can be wrong with the medium shows here, before anything on the disk is touched.
    source.check(target.sector)?;
    target.clear(host, what)?;
    target.write(source)?;
    target.compare(source)?;
    let state = if said.is_empty() { None } else { Some(target.carry(host, source, said)?) };
    target.finish(host, source, state.as_ref())?;
    if let Err(why) = firmware::register(host, variables, what, &host.path(&target.disk.path), target.sector) {
        say(&format!("warning: {why}; the firmware finds the disk by its fallback path"));
    }
    say(&format!("done in {:.1} s: {what} is on {} and was read again", start.elapsed().as_secs_f64(), target.disk.path));
    Ok(())
}
