//! The installer's side of a terminal: the disks that there are, and a confirmation that nobody gives by accident.

use std::io::{BufRead as _, Write as _};

use layers::selector::Traits;
use layers::{Context, Error, Result};

use super::source::Source;
use super::target::Target;
use super::{Consent, candidates};
use crate::disks;
use crate::host::Host;

/// Letters of the serial number that are typed.
const END: usize = 4;

/// Shows an error to whoever stands at the machine.
pub fn tell(error: &Error) {
    println!("\n{error}");
    error.hint().iter().for_each(|hint| println!("hint: {hint}"));
}

/// Lets a person choose a disk and confirm it; asks again until one can be used.
pub fn choose(host: &Host, source: &Source, what: &str) -> Result<Target> {
    loop {
        let all = candidates(host);
        println!("\nDisks that {what} can be installed on:\n");
        for (number, disk) in all.iter().enumerate() {
            let holds = disks::listed(&disks::contents(host, &disk.name));
            println!("  {}  {}\n     holds {holds}", number + 1, disks::describe(disk));
        }
        let answer = ask("\nNumber of the disk (Enter looks again): ")?;
        let chosen = answer.parse::<usize>().ok().and_then(|number| all.get(number.checked_sub(1)?));
        let Some(disk) = chosen else { continue };
        match Target::open(host, source, disk, Consent::Erase) {
            Ok(target) => match confirm(disk, what) {
                Ok(()) => return Ok(target),
                Err(error) => tell(&error),
            },
            Err(error) => tell(&error),
        }
    }
}

/// Asks for the end of the disk's serial number: it is on its label, and no other disk has it.
pub fn confirm(disk: &Traits, what: &str) -> Result<()> {
    let wanted = proof(disk);
    println!("\nALL that is on {} will be lost; then it has {what}.", disks::describe(disk));
    let name =
        if disk.serial.is_empty() { "its name".into() } else { format!("the last {} characters of its serial number", wanted.chars().count()) };
    if ask(&format!("Type {name} to go on: "))? == wanted {
        return Ok(());
    }
    Err(Error::input(format!("installing on {}: that is not {name}; nothing was written", disk.path)))
}

/// What has to be typed for a disk.
fn proof(disk: &Traits) -> String {
    if disk.serial.is_empty() {
        return disk.name.clone();
    }
    let length = disk.serial.chars().count();
    disk.serial.chars().skip(length.saturating_sub(END)).collect()
}

fn ask(question: &str) -> Result<String> {
    // A whole line, so that the question also shows where lines are waited for.
    print!("{question}\n> ");
    std::io::stdout().flush().context(|| "writing to the terminal".into())?;
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line).context(|| "reading from the terminal".into())? {
        0 => Err(Error::input("asking for a disk: the terminal was closed")),
        _ => Ok(line.trim().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_confirmed_by_the_end_of_its_serial_number_or_its_name() {
        let disk = |serial: &str| Traits { name: "sda".into(), serial: serial.into(), ..Traits::default() };
        assert_eq!(["S3Z9NB0K", "abc", ""].map(|serial| proof(&disk(serial))), ["NB0K", "abc", "sda"]);
    }
}
