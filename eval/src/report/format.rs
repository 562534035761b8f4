//! Numbers as people read them.

/// Seconds: "48 s", "9 min 41 s", "2 h 03 min".
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Counts with three significant digits: "812", "11.2 k", "11.2 M".
pub fn count(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v < 1e4 && v.fract() == 0.0 => return grouped(value as i64),
        v if v < 1e3 => (value, ""),
        v if v < 999.5e3 => (value / 1e3, " k"),
        v if v < 999.5e6 => (value / 1e6, " M"),
        v if v < 999.5e9 => (value / 1e9, " G"),
        _ => (value / 1e12, " T"),
    };
    format!("{}{unit}", digits(scaled))
}

/// Bytes in powers of 1000: "30.1 MB".
pub fn bytes(value: f64) -> String {
    match value {
        v if v < 1e3 => format!("{v:.0} B"),
        v if v < 999.5e3 => format!("{} kB", digits(v / 1e3)),
        v if v < 999.5e6 => format!("{} MB", digits(v / 1e6)),
        v => format!("{} GB", digits(v / 1e9)),
    }
}

/// A share as a percentage; 0 and 100 are written without a fraction only where they are exact.
pub fn percent(share: f64) -> String {
    if share == 0.0 || share == 1.0 {
        format!("{:.0} %", share * 100.0)
    } else {
        format!("{:.1} %", share * 100.0)
    }
}

/// A tick of an axis: as few digits as say it.
pub fn tick(value: f64) -> String {
    let trimmed = |number: String| match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => number,
    };
    match value.abs() {
        0.0 => "0".into(),
        v if v < 1e-4 => format!("{value:.0e}"),
        v if v < 1e3 => trimmed(format!("{value:.5}")),
        v if v < 1e6 => trimmed(format!("{:.3}", value / 1e3)) + " k",
        v if v < 1e9 => trimmed(format!("{:.3}", value / 1e6)) + " M",
        _ => trimmed(format!("{:.3}", value / 1e9)) + " G",
    }
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v < 9.995 => format!("{value:.2}"),
        v if v < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn grouped(value: i64) -> String {
    let text = value.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0 { format!("−{grouped}") } else { grouped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        assert_eq!(duration(581.2), "9 min 41 s");
        assert_eq!(duration(7380.0), "2 h 03 min");
        assert_eq!(duration(3.26), "3.3 s");
        assert_eq!(count(11_204_000.0), "11.2 M");
        assert_eq!(count(2048.0), "2,048");
        assert_eq!(count(1_470_000.0), "1.47 M");
        assert_eq!(count(999_700.0), "1.00 M");
        assert_eq!(bytes(30_140_000.0), "30.1 MB");
        assert_eq!(percent(0.873), "87.3 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(tick(2_000_000.0), "2 M");
        assert_eq!(tick(0.018), "0.018");
        assert_eq!(tick(1.5), "1.5");
    }
}
