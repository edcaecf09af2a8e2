//! Step `time`: zone, time servers, and a clock that is never behind the image.

use std::time::UNIX_EPOCH;

use layers::{Context, Error, Fault, Result};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::{Outcome, Site, Step, json, systemctl};
use crate::host::Change;

const SERVERS: &str = "etc/systemd/timesyncd.conf.d/50-chasi-bod.conf";

/// Seconds since 1970. By the standard library: rustix's clock_gettime insists on a vDSO with getcpu, which User-Mode Linux has not.
fn now() -> i64 {
    // A clock before 1970 is behind every image.
    UNIX_EPOCH.elapsed().map_or(-1, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Zone, servers, clock floor.
pub struct TimeStep;

impl Step for TimeStep {
    fn name(&self) -> &'static str {
        "time"
    }

    fn inputs(&self, site: &Site) -> String {
        json(&(&site.settings.zone.value, &site.settings.servers.value))
    }

    fn is_done(&self, site: &Site) -> bool {
        !site.host.is_live() || now() >= site.image.epoch
    }

    fn run(&self, site: &Site) -> Result<Outcome> {
        let (host, zone) = (site.host, &site.settings.zone);
        let file = format!("/usr/share/zoneinfo/{}", zone.value);
        if zone.value != "UTC" && !host.path(&file).is_file() {
            let error = Error::input(format!("setting time zone `{}` of {}: the image has no such zone", zone.value, zone.source));
            return Err(error.with_hint("use a tz database name such as Europe/Berlin; the image needs the package tzdata"));
        }
        host.link("etc/localtime", &file)?;
        let servers = &site.settings.servers.value;
        let conf = format!("# Written by chasi-bod.\n[Time]\nNTP={}\nFallbackNTP=\n", servers.join(" "));
        if host.write(SERVERS, conf.as_bytes(), 0o644)? == Change::Made && host.path("run/systemd/timesync").is_dir() {
            systemctl(host, &["try-restart", "--no-block", "systemd-timesyncd.service"])?;
        }
        let mut detail = format!("{}, servers {}", zone.value, if servers.is_empty() { "from DHCP".into() } else { servers.join(" ") });
        if !self.is_done(site) {
            let floor = Timespec { tv_sec: site.image.epoch, tv_nsec: 0 };
            clock_settime(ClockId::Realtime, floor).fault(Fault::Environment, || "setting the clock to the image's time".into())?;
            detail.push_str(", clock was behind the image and was set to its time");
        }
        Ok(Outcome { detail, files: vec!["etc/localtime".into(), SERVERS.into()] })
    }
}
