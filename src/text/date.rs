//! `strftime` over UTC, for templates that state today's date.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Now in UTC; a conversion it does not know is an error that names it.
pub(super) fn strftime_now(format: &str) -> Result<String, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, now)
}

/// `seconds` since 1970-01-01 UTC. Between `%` and a number's letter, `-` takes its padding away.
fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('-') => {
                let letter = chars.next();
                let text = letter.filter(|l| "demHIMSyjklUW".contains(*l)).and_then(|l| conversion(l, seconds));
                let text = text.ok_or_else(|| unknown("-", letter))?;
                let short = text.trim_start_matches(['0', ' ']);
                out.push_str(if short.is_empty() { "0" } else { short });
            }
            letter => out.push_str(&letter.and_then(|l| conversion(l, seconds)).ok_or_else(|| unknown("", letter))?),
        }
    }
    Ok(out)
}

fn unknown(flag: &str, letter: Option<char>) -> String {
    format!("strftime_now does not know %{flag}{}", letter.map_or(String::new(), String::from))
}

fn conversion(letter: char, seconds: u64) -> Option<String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let weekday = (days + 4) % 7;
    let day_of_year = days as i64 - (1..year).fold(-719_162, |n, y| n + 365 + i64::from(leap(y))) + 1;
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let all = |format: &str| strftime(format, seconds).ok();
    Some(match letter {
        'Y' => year.to_string(),
        'y' => format!("{:02}", year % 100),
        'C' => format!("{:02}", year / 100),
        'm' => format!("{month:02}"),
        'd' => format!("{day:02}"),
        'e' => format!("{day:2}"),
        'j' => format!("{day_of_year:03}"),
        'B' => month_name.to_owned(),
        'b' | 'h' => month_name[..3].to_owned(),
        'A' => day_name.to_owned(),
        'a' => day_name[..3].to_owned(),
        'u' => (if weekday == 0 { 7 } else { weekday }).to_string(),
        'w' => weekday.to_string(),
        'U' => format!("{:02}", (day_of_year + 6 - weekday as i64) / 7),
        'W' => format!("{:02}", (day_of_year + 6 - (weekday as i64 + 6) % 7) / 7),
        'H' => format!("{hour:02}"),
        'I' => format!("{:02}", (hour + 11) % 12 + 1),
        'k' => format!("{hour:2}"),
        'l' => format!("{:2}", (hour + 11) % 12 + 1),
        'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
        'M' => format!("{minute:02}"),
        'S' => format!("{:02}", second % 60),
        's' => seconds.to_string(),
        // A naive time has no zone.
        'z' | 'Z' => String::new(),
        'c' => all("%a %b %e %H:%M:%S %Y")?,
        'x' | 'D' => all("%m/%d/%y")?,
        'X' | 'T' => all("%H:%M:%S")?,
        'F' => all("%Y-%m-%d")?,
        'R' => all("%H:%M")?,
        'n' => "\n".to_owned(),
        't' => "\t".to_owned(),
        '%' => "%".to_owned(),
        _ => return None,
    })
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Year, month and day of a day number since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        assert_eq!(strftime("%d %b %Y", 0).unwrap(), "01 Jan 1970");
        assert_eq!(
            strftime("%A %e %B %y, %I:%M:%S %p%%", 951_827_696).unwrap(),
            "Tuesday 29 February 00, 12:34:56 PM%"
        );
        // Python's answers for two leap days, a first and a last day.
        let format = "%j %-j %U %W %u %w %-d %-m %k %l|%c|%F %T|%C%y %h%n%-H";
        for (seconds, expected) in [
            (951_827_696, "060 60 09 09 2 2 29 2 12 12|Tue Feb 29 12:34:56 2000|2000-02-29 12:34:56|2000 Feb\n12"),
            (1_735_689_599, "366 366 52 53 2 2 31 12 23 11|Tue Dec 31 23:59:59 2024|2024-12-31 23:59:59|2024 Dec\n23"),
            (1_767_225_600, "001 1 00 00 4 4 1 1  0 12|Thu Jan  1 00:00:00 2026|2026-01-01 00:00:00|2026 Jan\n0"),
            (1_772_323_200, "060 60 09 08 7 0 1 3  0 12|Sun Mar  1 00:00:00 2026|2026-03-01 00:00:00|2026 Mar\n0"),
        ] {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
        assert!(strftime("%-Q", 0).unwrap_err().contains("%-Q"));
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
    }
}
