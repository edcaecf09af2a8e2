//! When a virtual cluster sleeps by its schedule: two lines of cron (crontab(5), five fields) and the time zone that they are read in.

use std::str::FromStr as _;

use croner::Cron;
use croner::errors::CronError;
use jiff::Zoned;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::settings::Sleep;
use crate::{Error, Result};

/// Annotation with the time (RFC 3339) from which on people want a virtual cluster awake until its schedule suspends it the next time.
pub const AWAKE_SINCE: &str = "chasi-bod.io/awake-since";

/// What a schedule says of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Whether the virtual cluster sleeps.
    pub asleep: bool,
    /// When that may change by itself.
    pub until: Option<Time>,
}

/// What the schedule says of `now`; `since` is when people wanted it awake last, at the latest when they made it.
pub fn at(sleep: &Sleep, since: &Time, now: &Time) -> Result<Moment> {
    let zone = match &sleep.time_zone {
        Some(name) => TimeZone::get(name).map_err(|_| Error::input(format!("spec.sleep.timeZone: there is no time zone `{name}`")))?,
        None => TimeZone::system(),
    };
    let now = now.0.to_zoned(zone);
    let suspend = Line::read("suspend", &sleep.suspend)?;
    let resume = sleep.resume.as_deref().map(|text| Line::read("resume", text)).transpose()?;
    let (slept, woke) = (suspend.before(&now)?, resume.as_ref().map(|line| line.before(&now)).transpose()?.flatten());
    let asleep = slept.is_some_and(|slept| slept.timestamp() > since.0 && woke.is_none_or(|woke| woke < slept));
    let next = if asleep { resume.as_ref() } else { Some(&suspend) };
    let until = next.map(|line| line.after(&now)).transpose()?.flatten();
    Ok(Moment { asleep, until: until.map(|at| Time(at.timestamp())) })
}

/// One line of the schedule, and its field.
struct Line<'a> {
    field: &'a str,
    text: &'a str,
    cron: Cron,
}

impl<'a> Line<'a> {
    fn read(field: &'a str, text: &'a str) -> Result<Self> {
        let bad = |why: &str| Error::input(format!("spec.sleep.{field}: `{text}`: {why}"));
        if text.split_whitespace().count() != 5 {
            return Err(bad("write five fields: minute, hour, day of month, month, day of week"));
        }
        let cron = Cron::from_str(text).map_err(|e| bad(&e.to_string()))?;
        Ok(Self { field, text, cron })
    }

    /// The last time at or before this one.
    fn before(&self, now: &Zoned) -> Result<Option<Zoned>> {
        self.found(self.cron.find_previous_occurrence(now, true))
    }

    /// The next time after this one.
    fn after(&self, now: &Zoned) -> Result<Option<Zoned>> {
        self.found(self.cron.find_next_occurrence(now, false))
    }

    fn found(&self, found: Result<Zoned, CronError>) -> Result<Option<Zoned>> {
        match found {
            Ok(at) => Ok(Some(at)),
            // Such as 30 February.
            Err(CronError::TimeSearchLimitExceeded) => Ok(None),
            Err(error) => Err(Error::input(format!("spec.sleep.{}: `{}`: {error}", self.field, self.text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Time {
        Time(text.parse().unwrap())
    }

    fn night(zone: &str) -> Sleep {
        Sleep { suspend: "0 22 * * 1-5".into(), resume: Some("30 6 * * 1-5".into()), time_zone: Some(zone.into()) }
    }

    #[test]
    fn it_sleeps_from_one_line_to_the_other_in_its_time_zone() {
        // 2026-06-01 is a Monday, Berlin two hours before UTC.
        for (now, asleep, until) in [
            ("2026-06-01T19:59:59Z", false, "2026-06-01T20:00:00Z"),
            ("2026-06-01T20:00:00Z", true, "2026-06-02T04:30:00Z"),
            ("2026-06-02T04:29:59Z", true, "2026-06-02T04:30:00Z"),
            ("2026-06-02T04:30:00Z", false, "2026-06-02T20:00:00Z"),
            // From Friday evening over the weekend.
            ("2026-06-07T12:00:00Z", true, "2026-06-08T04:30:00Z"),
        ] {
            let moment = at(&night("Europe/Berlin"), &time("2026-05-01T00:00:00Z"), &time(now)).unwrap();
            assert_eq!(moment, Moment { asleep, until: Some(time(until)) }, "{now}");
        }
    }

    #[test]
    fn who_woke_it_has_it_awake_until_the_next_evening() {
        let (since, now) = (time("2026-06-01T21:00:00Z"), time("2026-06-01T22:00:00Z"));
        let moment = at(&night("Europe/Berlin"), &since, &now).unwrap();
        assert_eq!(moment, Moment { asleep: false, until: Some(time("2026-06-02T20:00:00Z")) });
        assert!(at(&night("Europe/Berlin"), &since, &time("2026-06-02T20:00:00Z")).unwrap().asleep);
        let by_hand = Sleep { resume: None, ..night("UTC") };
        assert_eq!(at(&by_hand, &since, &time("2026-06-03T12:00:00Z")).unwrap(), Moment { asleep: true, until: None });
    }

    #[test]
    fn mistakes_are_named_by_their_field() {
        let said = |sleep: Sleep| at(&sleep, &time("2026-05-01T00:00:00Z"), &time("2026-06-01T00:00:00Z")).unwrap_err().to_string();
        assert_eq!(said(night("Mars/Olympus")), "spec.sleep.timeZone: there is no time zone `Mars/Olympus`");
        let fields = "write five fields: minute, hour, day of month, month, day of week";
        assert_eq!(said(Sleep { suspend: "@daily".into(), ..night("UTC") }), format!("spec.sleep.suspend: `@daily`: {fields}"));
        assert!(said(Sleep { resume: Some("0 25 * * *".into()), ..night("UTC") }).starts_with("spec.sleep.resume: `0 25 * * *`: "));
    }
}
