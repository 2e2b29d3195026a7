//! How results and figures are printed.

use std::fmt;
use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use tokrun_ledger::{Credits, MICRO};

use crate::failure::Status;

/// A line of data, on stdout.
macro_rules! out {
    ($($argument:tt)*) => { $crate::output::data(format_args!($($argument)*)) };
}

/// A line for people, on stderr.
macro_rules! say {
    ($($argument:tt)*) => { $crate::output::remark(format_args!($($argument)*)) };
}

/// Prints a line of data. A reader that has enough ends the program quietly; data that cannot be written is a failure.
pub(crate) fn data(line: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        let status = cannot_write(&error);
        std::process::exit(status as i32);
    }
}

/// Says why data could not be written, unless its reader just left.
pub(crate) fn cannot_write(error: &io::Error) -> Status {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Status::Done;
    }
    remark(format_args!("error: cannot write to stdout: {error}"));
    Status::Failed
}

/// Prints a line for people. Nobody can be told that stderr cannot be written.
pub(crate) fn remark(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Somebody else's text, without what would steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Somebody else's text in a cell of a CSV file, which no spreadsheet takes for a formula.
pub(crate) fn csv_text(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

/// A number with thousands separated: `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Credits for people: `1,000,000` or `-12.5`.
pub(crate) fn credits(credits: Credits) -> String {
    let plain = credits.to_string();
    let (sign, plain) = plain.strip_prefix('-').map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = plain.split_once('.').map_or((plain, ""), |(whole, fraction)| (whole, fraction));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), grouped);
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// Credits for programs: a JSON number, whole where it is whole.
pub(crate) fn credits_json(credits: Credits) -> serde_json::Value {
    let micro = credits.micro();
    if micro % MICRO == 0 { (micro / MICRO).into() } else { (micro as f64 / MICRO as f64).into() }
}

/// Bytes in the unit that reads best: `98.4 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Three significant decimals are plenty for a duration in ms.
pub(crate) fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

/// A plain table; the columns in `numeric` are aligned to the right.
pub(crate) fn table(header: &[&str], numeric: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for &index in numeric {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn credits_keep_their_fraction() {
        assert_eq!(credits(Credits::from_micro(1_234_567_500_000)), "1,234,567.5");
        assert_eq!(credits(Credits::from_micro(-2_500_000)), "-2.5");
        assert_eq!(credits_json(Credits::from_micro(3_000_000)), serde_json::json!(3));
        assert_eq!(credits_json(Credits::from_micro(250_000)), serde_json::json!(0.25));
    }

    #[test]
    fn bytes_take_the_unit_that_fits() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
    }
}
