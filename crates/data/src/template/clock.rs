//! What the time is, and `strftime`: some templates state the date.
//!
//! The date is Universal Time, so the same moment gives the same text on every machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether any template has asked for the machine's time in this process.
static WAS_READ: AtomicBool = AtomicBool::new(false);

/// Where the time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// Always this moment, in seconds since 1970-01-01 00:00 UTC: for renderings that must not change.
    Fixed(i64),
}

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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Clock {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub fn seconds(self) -> i64 {
        match self {
            Self::Fixed(seconds) => seconds,
            Self::System => Self::now(),
        }
    }

    /// Whether any template has asked for the machine's time in this process: what it wrote holds for today.
    pub fn was_read() -> bool {
        WAS_READ.load(Ordering::Relaxed)
    }

    /// The date of the machine, for comparison alone.
    pub fn today() -> String {
        Self::Fixed(Self::machine_seconds()).strftime("%Y-%m-%d")
    }

    fn now() -> i64 {
        WAS_READ.store(true, Ordering::Relaxed);
        Self::machine_seconds()
    }

    fn machine_seconds() -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
        }
    }

    /// Writes the time by C's format letters; `%-d` and its like leave out leading zeros. A letter
    /// that is not known stays as it is.
    pub fn strftime(self, format: &str) -> String {
        let time = Civil::new(self.seconds());
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut letter = chars.next();
            let bare = letter == Some('-');
            if bare {
                letter = chars.next();
            }
            match letter.and_then(|letter| time.field(letter)) {
                Some(field) if bare => {
                    let trimmed = field.trim_start_matches(['0', ' ']);
                    out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
                }
                Some(field) => out.push_str(&field),
                None => {
                    out.push_str(if bare { "%-" } else { "%" });
                    out.extend(letter);
                }
            }
        }
        out
    }
}

/// A moment in the Gregorian calendar.
struct Civil {
    year: i64,
    month: usize,
    day: i64,
    day_of_year: i64,
    weekday: usize,
    second_of_day: i64,
    seconds: i64,
}

impl Civil {
    /// Days to date by Howard Hinnant's `civil_from_days`: years begin in March, eras have 400.
    fn new(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
        let day_of_year = match month {
            1 | 2 => from_march - 306,
            _ => from_march + 59 + leap,
        };
        Self {
            year,
            month: month as usize - 1,
            day: from_march - (153 * march_month + 2) / 5 + 1,
            day_of_year,
            weekday: (days + 4).rem_euclid(7) as usize,
            second_of_day: seconds.rem_euclid(86_400),
            seconds,
        }
    }

    fn field(&self, letter: char) -> Option<String> {
        let (hour, minute) = (self.second_of_day / 3600, self.second_of_day / 60 % 60);
        let hour12 = (hour + 11) % 12 + 1;
        let (month, weekday) = (MONTHS[self.month], DAYS[self.weekday]);
        Some(match letter {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month + 1),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year + 1),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour12:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", self.second_of_day % 60),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'f' => "000000".to_owned(),
            's' => self.seconds.to_string(),
            'z' => "+0000".to_owned(),
            'Z' => "UTC".to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{:02}", self.second_of_day % 60),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month + 1, self.day, self.year.rem_euclid(100)),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected texts printed by `date -u -d @SECONDS +FORMAT` of GNU coreutils.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 Thu 001 00:00:00"),
            (951_782_400, "2000-02-29 Tue 060 00:00:00"),
            (1_709_251_199, "2024-02-29 Thu 060 23:59:59"),
            (1_735_689_599, "2024-12-31 Tue 366 23:59:59"),
            (4_107_542_400, "2100-03-01 Mon 060 00:00:00"),
            (-1, "1969-12-31 Wed 365 23:59:59"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(Clock::Fixed(seconds).strftime("%F %a %j %T"), expected);
        }
    }

    #[test]
    fn formats_of_chat_templates_are_written_as_strftime_writes_them() {
        let clock = Clock::Fixed(1_721_952_000); // 2024-07-26
        assert_eq!(clock.strftime("%d %b %Y"), "26 Jul 2024");
        assert_eq!(clock.strftime("%B %-d, %Y, %I %p %%"), "July 26, 2024, 12 AM %");
        assert_eq!(clock.strftime("%Q %-H %"), "%Q 0 %");
    }
}
