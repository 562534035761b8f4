//! A message: its subject and what was written. Addresses are left out.

use mail_parser::MessageParser;

use super::html;
use crate::document::About;
use crate::parse::Parsed;

/// Reads one.
pub fn read(bytes: &[u8]) -> Parsed {
    let message = MessageParser::default().parse(bytes).ok_or("broken: it is no message")?;
    let mut text = String::new();
    if let Some(subject) = message.subject() {
        text += &format!("Subject: {subject}\n\n");
    }
    let mut bodies = 0;
    for i in 0..message.text_body_count() {
        // A body that is HTML only is read as a page.
        let part = message.text_part(i as u32);
        let body = match part.filter(|p| p.is_text_html()) {
            Some(page) => html::read(page.text_contents().unwrap_or_default()).0,
            None => message.body_text(i).map(|t| t.into_owned()).unwrap_or_default(),
        };
        if !body.trim().is_empty() {
            text += body.trim_end();
            text += "\n";
            bodies += 1;
        }
    }
    if bodies == 0 {
        return Err("a message without text".into());
    }
    let about = About {
        title: message.subject().map(str::to_string),
        time: message.date().map(|d| d.to_rfc3339()),
        ..About::default()
    };
    Ok((text.replace("\r\n", "\n"), about))
}
