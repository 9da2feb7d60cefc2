//! The clock on the wall of an airport: from its readings to instants.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Error, Timestamp};

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;

/// The instants (Unix seconds) in which a zone keeps one offset, `from <= t < until`.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: i64,
    until: i64,
    offset: i64,
}

/// Where a reading of the clock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// At this instant; at the earlier one if the clock is put back and shows it twice.
    At(i64),
    /// Nowhere on the day when it would be due: the clock is put forward over it. It would have been at this instant had
    /// the clock been left alone.
    Skipped(i64),
}

/// A time zone that remembers the offset it used last: a tenant's flights are in the order of time, and the offset
/// changes twice a year, so nearly all questions are answered by an addition.
#[derive(Debug)]
pub(crate) struct Clock {
    zone: TimeZone,
    span: Option<Span>,
}

impl Clock {
    pub(crate) fn new(zone: TimeZone) -> Self {
        Self { zone, span: None }
    }

    /// The offset at `t` and for how long it has been and will be kept.
    fn span(&mut self, t: i64) -> Result<Span, Error> {
        if let Some(span) = self.span
            && span.from <= t
            && t < span.until
        {
            return Ok(span);
        }
        let timestamp = Timestamp::from_second(t)?;
        // Ends that jiff can represent, so that sums with an offset or a day cannot overflow.
        let (min, max) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
        // `preceding` is strict: it starts from the next second, so that a transition at `t` itself counts.
        let before = Timestamp::from_second(t + 1)?;
        let span = Span {
            from: self.zone.preceding(before).next().map_or(min, |x| x.timestamp().as_second()),
            until: self.zone.following(timestamp).next().map_or(max, |x| x.timestamp().as_second()),
            offset: i64::from(self.zone.to_offset(timestamp).seconds()),
        };
        self.span = Some(span);
        Ok(span)
    }

    /// What the clock reads at `t`, in minutes since midnight.
    pub(crate) fn minute_at(&mut self, t: i64) -> Result<i64, Error> {
        let span = self.span(t)?;
        Ok((t + span.offset).rem_euclid(DAY) / MINUTE)
    }

    /// The instant at which the clock reads `minute` of `date`; the earlier one if it does so twice, and where it would
    /// have been had the clock not been put forward over it.
    pub(crate) fn instant(&mut self, date: Date, minute: i64) -> Result<i64, Error> {
        let local = midnight(date)? + minute * MINUTE;
        // Offsets lie within a day of each other, so an instant a day away from both ends is the only one.
        if let Some(Span { from, until, offset }) = self.span
            && from + DAY + offset <= local
            && local < until - DAY + offset
        {
            return Ok(local - offset);
        }
        let t = self.zone.to_ambiguous_timestamp(reading(date, minute)?).compatible()?.as_second();
        self.span(t)?;
        Ok(t)
    }

    /// The first instant after `after` at which the clock reads `minute` (0 to 1439).
    pub(crate) fn next(&mut self, after: i64, minute: i64) -> Result<Reading, Error> {
        let span = self.span(after)?;
        let local = after + span.offset;
        let today = local - local.rem_euclid(DAY) + minute * MINUTE;
        let t = if today > local { today } else { today + DAY } - span.offset;
        if t < span.until { Ok(Reading::At(t)) } else { self.next_across(after, minute) }
    }

    /// [`Clock::next`] when the clock is changed in between: asks day by day, from the day before in case that the clock
    /// is put back over midnight.
    fn next_across(&mut self, after: i64, minute: i64) -> Result<Reading, Error> {
        let today = self.zone.to_datetime(Timestamp::from_second(after)?).date();
        let mut date = today.yesterday()?;
        for _ in 0..4 {
            let local = midnight(date)? + minute * MINUTE;
            let at = |offset: Offset| local - i64::from(offset.seconds());
            match self.zone.to_ambiguous_timestamp(reading(date, minute)?).offset() {
                AmbiguousOffset::Unambiguous { offset } if at(offset) > after => {
                    return Ok(Reading::At(at(offset)));
                }
                AmbiguousOffset::Fold { before, .. } if at(before) > after => {
                    return Ok(Reading::At(at(before)));
                }
                AmbiguousOffset::Fold { after: late, .. } if at(late) > after => {
                    return Ok(Reading::At(at(late)));
                }
                AmbiguousOffset::Gap { before, .. } if at(before) > after => {
                    return Ok(Reading::Skipped(at(before)));
                }
                _ => date = date.tomorrow()?,
            }
        }
        // Not reached: of the days asked for, the last lies after `after` on every clock.
        Ok(Reading::Skipped(after + DAY))
    }
}

/// Seconds from 1970 to midnight of `date`, both on one and the same clock.
fn midnight(date: Date) -> Result<i64, Error> {
    Ok(Offset::UTC.to_timestamp(date.to_datetime(Time::midnight()))?.as_second())
}

fn reading(date: Date, minute: i64) -> Result<DateTime, Error> {
    // Callers pass 0 to 1439; another value becomes an error of jiff and not a wrap.
    let hour = i8::try_from(minute / 60).unwrap_or(i8::MAX);
    let minute = i8::try_from(minute % 60).unwrap_or(i8::MAX);
    Ok(date.to_datetime(Time::new(hour, minute, 0, 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule word by word: minute by minute, on every clock that the data knows.
    fn next_by_walking(zone: &TimeZone, after: i64, minute: i64) -> i64 {
        (1..3 * 24 * 60)
            .map(|m| after + m * MINUTE)
            .find(|&t| {
                let at = zone.to_datetime(Timestamp::from_second(t).unwrap());
                i64::from(at.hour()) * 60 + i64::from(at.minute()) == minute
            })
            .unwrap()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn next_is_the_first_instant_with_that_reading() {
        let mut skipped = 0;
        for name in [
            "America/New_York",
            "America/Los_Angeles",
            "America/Phoenix",
            "Pacific/Honolulu",
            "America/Anchorage",
            "Asia/Chongqing",
            // Half an hour, and a change at midnight.
            "Australia/Lord_Howe",
            "America/Havana",
        ] {
            let zone = zone(name);
            let mut clock = Clock::new(zone.clone());
            let start = Timestamp::from_second(at("2013-01-01T00:00:00Z")).unwrap();
            for change in zone.following(start).take(2) {
                let change = change.timestamp().as_second();
                for step in -20..8 {
                    for minute in (0..1440).step_by(31) {
                        let after = change + step * 97 * MINUTE;
                        let expected = next_by_walking(&zone, after, minute);
                        match clock.next(after, minute).unwrap() {
                            Reading::At(t) => assert_eq!(t, expected, "{name} {after} {minute}"),
                            Reading::Skipped(t) => {
                                skipped += 1;
                                assert!(after < t && t < expected, "{name} {after} {minute}");
                            }
                        }
                    }
                }
            }
        }
        assert!(skipped > 0);
    }

    #[test]
    fn a_reading_shown_twice_is_the_earlier_instant() {
        let mut clock = Clock::new(zone("America/Los_Angeles"));
        let dep = at("2013-11-03T02:00:00Z");
        assert_eq!(clock.next(dep, 90).unwrap(), Reading::At(at("2013-11-03T08:30:00Z")));
        // After the first of the two it is the second.
        let between = at("2013-11-03T08:45:00Z");
        assert_eq!(clock.next(between, 90).unwrap(), Reading::At(at("2013-11-03T09:30:00Z")));
    }

    #[test]
    fn a_reading_that_the_clock_leaves_out_is_skipped() {
        let mut clock = Clock::new(zone("America/New_York"));
        let dep = at("2013-03-10T04:00:00Z");
        assert_eq!(clock.next(dep, 123).unwrap(), Reading::Skipped(at("2013-03-10T07:03:00Z")));
        assert_eq!(clock.next(at("2013-03-10T08:00:00Z"), 123).unwrap(), Reading::At(at("2013-03-11T06:03:00Z")));
    }

    #[test]
    fn instant_agrees_with_jiff_in_every_hour_of_the_year() {
        for name in ["America/New_York", "Australia/Lord_Howe", "America/Havana", "UTC"] {
            let zone = zone(name);
            let mut clock = Clock::new(zone.clone());
            let mut date = jiff::civil::date(2013, 1, 1);
            while date.year() == 2013 {
                for minute in (0..1440).step_by(30) {
                    let expected = zone.to_timestamp(reading(date, minute).unwrap()).unwrap().as_second();
                    assert_eq!(clock.instant(date, minute).unwrap(), expected, "{name} {date} {minute}");
                    assert_eq!(
                        clock.minute_at(expected).unwrap(),
                        {
                            let at = zone.to_datetime(Timestamp::from_second(expected).unwrap());
                            i64::from(at.hour()) * 60 + i64::from(at.minute())
                        },
                        "{name} {date} {minute}"
                    );
                }
                date = date.tomorrow().unwrap();
            }
        }
    }

    #[test]
    fn instants_beyond_all_calendars_are_errors() {
        let mut clock = Clock::new(TimeZone::UTC);
        assert!(clock.minute_at(i64::MAX).is_err());
        assert!(clock.next(i64::MIN, 0).is_err());
        assert!(clock.next(Timestamp::MAX.as_second(), 0).is_err());
    }
}
