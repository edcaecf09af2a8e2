//! What people read: tables, ages, failures.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use layers::platform::Failure;

/// Columns as wide as their longest word, the last one as it comes.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<_> = [head.map(str::to_string)].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(|column| if column + 1 == N { 0 } else { width(column) });
    let line = |row: &[String; N]| row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect::<String>();
    rows.iter().map(|row| line(row).trim_end().to_string() + "\n").collect()
}

/// A time that has passed, in the largest unit of which there are at least two.
pub fn age(since: Option<&Time>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".into() };
    match now.duration_since(since.0).as_secs().max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A phase as the API writes it.
pub fn word(phase: impl Debug) -> String {
    format!("{phase:?}").to_uppercase()
}

/// What failed, in one line.
pub fn failure(failure: &Failure) -> String {
    format!("{}: {}", failure.reason, failure.message.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use layers::platform::Phase;

    #[test]
    fn columns_fit_their_longest_cell_and_lines_end_with_a_word() {
        let rows = [["biz".to_string(), "RUNNING".into(), String::new()], ["später".into(), "ERROR".into(), "Refused: a b".into()]];
        assert_eq!(table(["NAME", "PHASE", "FAILURE"], rows), "NAME    PHASE    FAILURE\nbiz     RUNNING\nspäter  ERROR    Refused: a b\n");
    }

    #[test]
    fn ages_are_short_and_never_negative() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let at = |text: &str| age(Some(&Time(text.parse().unwrap())), now);
        assert_eq!(["2026-01-01T23:59:01Z", "2026-01-01T23:50:01Z", "2026-01-01T00:00:00Z"].map(at), ["59s", "9m", "24h"]);
        assert_eq!(["2025-12-20T00:00:00Z", "2026-01-02T00:00:07Z"].map(at), ["13d", "0s"]);
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn phases_are_written_as_by_the_api_and_failures_in_one_line() {
        Phase::ALL.iter().for_each(|phase| assert_eq!(serde_json::to_value(phase).unwrap(), word(phase)));
        let text = r#"{"reason":"Failed","message":"running `helm`: exit status 1\n  Error: no\n","since":"2026-01-01T00:00:00Z","attempts":2}"#;
        assert_eq!(failure(&serde_json::from_str(text).unwrap()), "Failed: running `helm`: exit status 1 Error: no");
    }
}
