//! Tables: rows of cells, with a heading for each sheet.
//!
//! Cells are streamed. Empty ones at the end of a row don't count, and repeated ones are told as
//! often as a person would read them, so that a sheet of a million empty columns is nothing.

use super::xml::{Node, Package, walk};
use crate::document::About;
use crate::parse::Parsed;
use crate::{Format, Limits};

/// Times that a repeated cell or row with something in it is written.
const REPEATS: usize = 100;
/// Widest row, cells.
const WIDTH: usize = 4096;

/// Reads `.xlsx` or `.ods`.
pub fn read(format: Format, bytes: Vec<u8>, limits: &Limits) -> Parsed {
    let mut package = Package::open(bytes, limits)?;
    let mut out = Sheet { text: String::new(), row: Vec::new(), most: limits.file_bytes as usize };
    match format {
        Format::Xlsx => xlsx(&mut package, &mut out)?,
        _ => ods(&package.need("content.xml")?, &mut out)?,
    }
    Ok((out.text, About::default()))
}

/// Reads values between commas, tabs or semicolons.
pub fn csv(text: &str, name: &str) -> Parsed {
    let head = text.lines().next().unwrap_or_default();
    let count = |c: char| head.matches(c).count();
    let delimiter = match () {
        () if name.ends_with(".tsv") => b'\t',
        () => {
            [',', ';', '\t'].into_iter().max_by_key(|c| (count(*c), *c == ',')).unwrap_or(',') as u8
        }
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let mut out = Sheet { text: String::new(), row: Vec::new(), most: usize::MAX };
    for record in reader.records() {
        let record = record.map_err(|e| format!("broken: {e}"))?;
        out.row.extend(record.iter().map(one_line));
        out.end_row(1);
    }
    Ok((out.text, About::default()))
}

/// Rows in the making.
struct Sheet {
    text: String,
    row: Vec<String>,
    most: usize,
}

impl Sheet {
    fn heading(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text += &format!("## {name}\n\n");
    }

    fn cell(&mut self, column: usize, text: &str) {
        if column < WIDTH && !text.is_empty() {
            let width = self.row.len().max(column + 1);
            self.row.resize(width, String::new());
            self.row[column] = one_line(text);
        }
    }

    fn end_row(&mut self, times: usize) {
        let end = self.row.iter().rposition(|c| !c.is_empty()).map_or(0, |i| i + 1);
        let line = self.row[..end].join(" | ");
        self.row.clear();
        for _ in 0..if end > 0 { times.min(REPEATS) } else { 0 } {
            if self.text.len() + line.len() < self.most {
                self.text += &line;
                self.text.push('\n');
            }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ods(xml: &str, out: &mut Sheet) -> Result<(), String> {
    let (mut column, mut repeats, mut row_repeats) = (0, 1, 1);
    let (mut cell, mut in_cell, mut notes) = (String::new(), false, 0);
    walk(xml, |node| match node {
        Node::Open("table", tag) => out.heading(&tag.get("name").unwrap_or_default()),
        Node::Open("table-row", tag) => {
            (column, row_repeats) = (0, tag.number("number-rows-repeated").unwrap_or(1));
        }
        Node::Open("table-cell" | "covered-table-cell", tag) => {
            (in_cell, repeats) = (true, tag.number("number-columns-repeated").unwrap_or(1));
            cell.clear();
        }
        Node::Open("annotation", _) => notes += 1,
        Node::Close("annotation") => notes -= 1,
        Node::Open("p", _) if in_cell && !cell.is_empty() => cell.push(' '),
        Node::Open("s", _) if in_cell => cell.push(' '),
        Node::Text(text) if in_cell && notes == 0 => cell.push_str(text),
        Node::Close("table-cell" | "covered-table-cell") => {
            in_cell = false;
            for i in 0..if cell.trim().is_empty() { 0 } else { repeats.min(REPEATS) } {
                out.cell(column + i, &cell);
            }
            column = column.saturating_add(repeats);
        }
        Node::Close("table-row") => out.end_row(row_repeats),
        _ => {}
    })
}

fn xlsx(package: &mut Package<'_>, out: &mut Sheet) -> Result<(), String> {
    let (shared, dates) = (strings(package)?, dates(package)?);
    let mut targets = Vec::new();
    let relations = package.text("xl/_rels/workbook.xml.rels")?.unwrap_or_default();
    walk(&relations, |node| {
        if let Node::Open("Relationship", tag) = node {
            targets.push((tag.get("Id"), tag.get("Target").unwrap_or_default()));
        }
    })?;
    let mut sheets = Vec::new();
    walk(&package.need("xl/workbook.xml")?, |node| {
        if let Node::Open("sheet", tag) = node {
            let target = targets.iter().find(|(id, _)| *id == tag.get("id"));
            sheets.extend(target.map(|t| (tag.get("name").unwrap_or_default(), t.1.clone())));
        }
    })?;
    for (name, target) in sheets {
        let path = match target.strip_prefix('/') {
            Some(path) => path.to_string(),
            None => format!("xl/{target}"),
        };
        let Some(xml) = package.text(&path)? else { continue };
        out.heading(&name);
        sheet(&xml, &shared, &dates, out)?;
    }
    Ok(())
}

fn sheet(xml: &str, shared: &[String], dates: &[bool], out: &mut Sheet) -> Result<(), String> {
    let (mut column, mut kind, mut date) = (0, String::new(), false);
    let (mut value, mut in_value) = (String::new(), false);
    walk(xml, |node| match node {
        Node::Open("row", _) => column = 0,
        Node::Open("c", tag) => {
            column = tag.get("r").and_then(|r| column_of(&r)).unwrap_or(column);
            kind = tag.get("t").unwrap_or_default();
            let style = tag.number("s").and_then(|s| dates.get(s));
            date = style.copied().unwrap_or(false);
            value.clear();
        }
        Node::Open("v" | "t", _) => in_value = true,
        Node::Close("v" | "t") => in_value = false,
        Node::Text(text) if in_value => value.push_str(text),
        Node::Close("c") => {
            let text = match kind.as_str() {
                "s" => {
                    let index = value.parse::<usize>().ok();
                    index.and_then(|i| shared.get(i)).cloned().unwrap_or_default()
                }
                "b" => if value == "1" { "true" } else { "false" }.to_string(),
                "" | "n" if date => day(&value).unwrap_or_else(|| value.clone()),
                "" | "n" => number(&value),
                _ => value.clone(),
            };
            out.cell(column, &text);
            column += 1;
        }
        Node::Close("row") => out.end_row(1),
        _ => {}
    })
}

/// Texts that cells refer to.
fn strings(package: &mut Package<'_>) -> Result<Vec<String>, String> {
    let Some(xml) = package.text("xl/sharedStrings.xml")? else { return Ok(Vec::new()) };
    let (mut all, mut text, mut inside, mut phonetic) = (Vec::new(), String::new(), false, false);
    walk(&xml, |node| match node {
        Node::Open("rPh", _) => phonetic = true,
        Node::Close("rPh") => phonetic = false,
        Node::Open("t", _) => inside = true,
        Node::Close("t") => inside = false,
        Node::Text(t) if inside && !phonetic => text.push_str(t),
        Node::Close("si") => all.push(std::mem::take(&mut text)),
        _ => {}
    })?;
    Ok(all)
}

/// For each style, whether its numbers are days.
fn dates(package: &mut Package<'_>) -> Result<Vec<bool>, String> {
    let Some(xml) = package.text("xl/styles.xml")? else { return Ok(Vec::new()) };
    let (mut own, mut styles, mut in_cells) = (Vec::new(), Vec::new(), false);
    walk(&xml, |node| match node {
        Node::Open("numFmt", tag) => {
            let code = tag.get("formatCode").unwrap_or_default().to_ascii_lowercase();
            let plain: String = code.split('"').step_by(2).collect();
            let day = plain.contains("yy") || plain.contains("dd") || plain.contains("h:mm");
            if day {
                own.extend(tag.number("numFmtId"));
            }
        }
        Node::Open("cellXfs", _) => in_cells = true,
        Node::Close("cellXfs") => in_cells = false,
        Node::Open("xf", tag) if in_cells => {
            let format = tag.number("numFmtId").unwrap_or(0);
            styles.push(matches!(format, 14..=22 | 45..=47) || own.contains(&format));
        }
        _ => {}
    })?;
    Ok(styles)
}

/// "BC12" is column 54.
fn column_of(reference: &str) -> Option<usize> {
    let letters = reference.bytes().take_while(u8::is_ascii_uppercase).take(4);
    let number = letters.fold(0, |n, b| n * 26 + usize::from(b - b'A') + 1);
    number.checked_sub(1)
}

/// 0.30000000000000004 is what is stored of 0.3.
fn number(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(x) if value.len() > 15 && x.is_finite() => {
            let short = format!("{x:.14e}").parse::<f64>().unwrap_or(x);
            short.to_string()
        }
        _ => value.to_string(),
    }
}

/// Days since the last day of 1899, as a date and the time of the day.
fn day(value: &str) -> Option<String> {
    let serial: f64 = value.parse().ok()?;
    if !(1.0..2_958_466.0).contains(&serial) {
        return None;
    }
    let minutes = (serial.fract() * 1440.0).round() as i64;
    let days = serial.trunc() as i64 + minutes / 1440 - 25_569;
    // Civil date from days since 1970, by eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let date = format!("{year:04}-{month:02}-{day:02}");
    let minutes = minutes % 1440;
    Some(match minutes {
        0 => date,
        m => format!("{date} {:02}:{:02}", m / 60, m % 60),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_all_kinds() {
        assert_eq!(column_of("A1"), Some(0));
        assert_eq!(column_of("BC12"), Some(54));
        assert_eq!(day("45292").as_deref(), Some("2024-01-01"));
        assert_eq!(day("60.5").as_deref(), Some("1900-02-28 12:00"));
        assert_eq!(number("0.30000000000000004"), "0.3");
        let (text, _) = csv("a;b\n\"x\ny\";\"1;2\"\n;;\n", "t.csv").unwrap_or_default();
        assert_eq!(text, "a | b\nx y | 1;2\n");
    }
}
