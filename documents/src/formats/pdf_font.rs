//! Fonts of PDF files: codes of a string to characters and widths (ISO 32000-1, 9.6 to 9.10).

use std::collections::HashMap;

use encoding_rs::{Encoding, MACINTOSH, WINDOWS_1252};
use hayro_cmap::{BfString, CMap};
use hayro_syntax::object::{Array, Dict, Name, Object, Stream};
use unicode_normalization::UnicodeNormalization;

/// Width of a glyph of which nothing is known, thousandths of the size.
const WIDTH: f64 = 500.0;

/// A font.
pub struct Font {
    to_unicode: Option<CMap>,
    codes: Codes,
}

enum Codes {
    /// One byte a code.
    Simple { texts: Vec<Option<String>>, widths: Vec<f64> },
    /// Two bytes a code. `direct`: codes are UTF-16.
    Composite { widths: HashMap<u32, f64>, default: f64, direct: bool },
}

/// A code as text.
pub struct Glyph {
    /// Its text, if that is known.
    pub text: Option<String>,
    /// Its width, in sizes of the font.
    pub width: f64,
    /// Whether spaces between words widen it.
    pub space: bool,
}

impl Font {
    /// Reads a font's dictionary.
    pub fn new(dict: &Dict<'_>, decoded: &dyn Fn(&Stream<'_>) -> Option<Vec<u8>>) -> Font {
        let to_unicode = dict.get::<Stream<'_>>("ToUnicode").and_then(|s| decoded(&s));
        let to_unicode = to_unicode.and_then(|data| CMap::parse(&data, |_| None));
        let kind = dict.get::<Name<'_>>("Subtype").map(|n| n.as_str().to_string());
        let codes = match kind.as_deref() {
            Some("Type0") => composite(dict),
            kind => simple(dict, kind == Some("Type3")),
        };
        Font { to_unicode, codes }
    }

    /// The glyphs of a string.
    pub fn glyphs(&self, string: &[u8]) -> Vec<Glyph> {
        let unicode = |code: u32| {
            let text = self.to_unicode.as_ref()?.lookup_bf_string(code)?;
            let text = match text {
                BfString::Char(c) => c.to_string(),
                BfString::String(s) => s,
            };
            // Some maps have nothing but zeros.
            (!text.chars().all(|c| c == '\0')).then(|| unjoined(&text))
        };
        match &self.codes {
            Codes::Simple { texts, widths } => {
                let glyph = |b: &u8| Glyph {
                    text: unicode(u32::from(*b)).or_else(|| texts[usize::from(*b)].clone()),
                    width: widths[usize::from(*b)] / 1000.0,
                    space: *b == b' ',
                };
                string.iter().map(glyph).collect()
            }
            Codes::Composite { widths, default, direct } => {
                let code = |pair: &[u8]| pair.iter().fold(0, |n, b| n << 8 | u32::from(*b));
                let glyph = |pair: &[u8]| {
                    let code = code(pair);
                    let plain = || direct.then(|| char::from_u32(code).map(String::from)).flatten();
                    Glyph {
                        text: unicode(code).or_else(plain),
                        width: widths.get(&code).copied().unwrap_or(*default) / 1000.0,
                        space: false,
                    }
                };
                string.chunks(2).map(glyph).collect()
            }
        }
    }
}

fn composite(dict: &Dict<'_>) -> Codes {
    let encoding = dict.get::<Name<'_>>("Encoding").map(|n| n.as_str().to_string());
    let direct = encoding.is_some_and(|n| n.contains("UTF16") || n.contains("UCS2"));
    let mut widths = HashMap::new();
    let below = dict.get::<Array<'_>>("DescendantFonts");
    let below = below.and_then(|a| a.iter::<Dict<'_>>().next()).unwrap_or_else(Dict::empty);
    let default = below.get::<f64>("DW").unwrap_or(1000.0);
    if let Some(list) = below.get::<Array<'_>>("W") {
        let mut items = list.iter::<Object<'_>>();
        while let (Some(first), Some(next)) = (items.next(), items.next()) {
            let Some(first) = first.into_number().map(|n| n.as_i64().clamp(0, 65_535) as u32)
            else {
                break;
            };
            match next {
                Object::Array(each) => {
                    for (i, width) in each.iter::<f64>().enumerate().take(65_536) {
                        widths.insert(first + i as u32, width);
                    }
                }
                Object::Number(last) => {
                    let Some(width) = items.next().and_then(Object::into_number) else { break };
                    for code in first..=last.as_i64().clamp(0, 65_535) as u32 {
                        widths.insert(code, width.as_f64());
                    }
                }
                _ => break,
            }
        }
    }
    Codes::Composite { widths, default, direct }
}

fn simple(dict: &Dict<'_>, type3: bool) -> Codes {
    let descriptor = dict.get::<Dict<'_>>("FontDescriptor").unwrap_or_else(Dict::empty);
    let missing = descriptor.get::<f64>("MissingWidth").unwrap_or(WIDTH);
    let mut widths = vec![missing; 256];
    let first = dict.get::<i32>("FirstChar").unwrap_or(0).clamp(0, 255) as usize;
    // A font of drawings has units of its own.
    let matrix = dict.get::<Array<'_>>("FontMatrix").and_then(|m| m.iter::<f64>().next());
    let unit = if type3 { matrix.unwrap_or(0.001) * 1000.0 } else { 1.0 };
    if let Some(list) = dict.get::<Array<'_>>("Widths") {
        for (i, width) in list.iter::<f64>().enumerate().take(256 - first) {
            widths[first + i] = width * unit;
        }
    }
    let encoding = dict.get::<Dict<'_>>("Encoding");
    let name = dict.get::<Name<'_>>("Encoding");
    let base = name.or_else(|| encoding.as_ref()?.get::<Name<'_>>("BaseEncoding"));
    let kind = dict.get::<Name<'_>>("Subtype").map(|n| n.as_str() == "TrueType");
    let mut texts: Vec<Option<String>> = match base.as_ref().map(Name::as_str) {
        Some("WinAnsiEncoding") => of_page(WINDOWS_1252),
        Some("MacRomanEncoding") => of_page(MACINTOSH),
        None if kind == Some(true) => of_page(WINDOWS_1252),
        _ => standard(),
    };
    if let Some(differences) = encoding.and_then(|e| e.get::<Array<'_>>("Differences")) {
        let mut code = 0;
        for item in differences.iter::<Object<'_>>() {
            match item {
                Object::Number(n) => code = n.as_i64().clamp(0, 255) as usize,
                Object::Name(name) if code < 256 => {
                    texts[code] = of_name(name.as_str());
                    code += 1;
                }
                _ => {}
            }
        }
    }
    Codes::Simple { texts, widths }
}

/// A code page as texts of codes.
fn of_page(page: &'static Encoding) -> Vec<Option<String>> {
    let text = |b: u8| (b >= 32).then(|| page.decode_without_bom_handling(&[b]).0.into_owned());
    (0..=255).map(text).collect()
}

/// Adobe's standard encoding, what of it is used.
fn standard() -> Vec<Option<String>> {
    let mut texts: Vec<Option<String>> =
        (0..=255u8).map(|b| matches!(b, 32..=126).then(|| char::from(b).to_string())).collect();
    let more = "39’ 96‘ 161¡ 162¢ 163£ 164⁄ 165¥ 166ƒ 167§ 168¤ 169' 170“ 171« 172‹ 173› 174fi 175fl \
                177– 178† 179‡ 180· 182¶ 183• 184‚ 185„ 186” 187» 188… 189‰ 191¿ 193` 194´ 195ˆ \
                196˜ 197¯ 198˘ 199˙ 200¨ 202˚ 203¸ 205˝ 206˛ 207ˇ 208— 225Æ 227ª 232Ł 233Ø 234Œ \
                235º 241æ 245ı 248ł 249ø 250œ 251ß";
    for entry in more.split_whitespace() {
        let digits = entry.bytes().take_while(u8::is_ascii_digit).count();
        if let Ok(code) = entry[..digits].parse::<u8>() {
            texts[usize::from(code)] = Some(entry[digits..].to_string());
        }
    }
    texts
}

/// Joined letters as letters, and signs of nobody's as what they mostly are: marks of items.
fn unjoined(text: &str) -> String {
    let joined = |c: char| matches!(c, '\u{fb00}'..='\u{fb06}');
    let text = text.replace(|c: char| matches!(c, '\u{e000}'..='\u{f8ff}'), "•");
    if text.contains(joined) { text.nfkc().collect() } else { text }
}

/// The text of a glyph by its name, after the Adobe glyph list.
fn of_name(name: &str) -> Option<String> {
    let name = name.split('.').next().unwrap_or(name);
    if name.contains('_') {
        return name.split('_').map(of_name).collect();
    }
    let mut chars = name.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        return Some(c.to_string());
    }
    let hex = |digits: &str| {
        let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?;
        Some(unjoined(&c.to_string()))
    };
    if let Some(digits) = name.strip_prefix("uni").filter(|d| d.len() == 4) {
        return hex(digits);
    }
    if let Some(digits) = name.strip_prefix('u').filter(|d| (4..=6).contains(&d.len()))
        && let Some(text) = hex(digits)
    {
        return Some(text);
    }
    let listed =
        NAMES.split_whitespace().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    if let Some(text) = listed {
        return Some(text.to_string());
    }
    match name {
        "space" | "nbspace" | "nonbreakingspace" => return Some(" ".into()),
        "hyphen" | "minus" | "sfthyphen" | "softhyphen" => return Some("-".into()),
        _ => {}
    }
    // A letter and its accent.
    let letter = name.chars().next().filter(char::is_ascii_alphabetic)?;
    let accent = match &name[1..] {
        "grave" => '\u{300}',
        "acute" => '\u{301}',
        "circumflex" => '\u{302}',
        "tilde" => '\u{303}',
        "macron" => '\u{304}',
        "breve" => '\u{306}',
        "dotaccent" => '\u{307}',
        "dieresis" => '\u{308}',
        "ring" => '\u{30a}',
        "hungarumlaut" => '\u{30b}',
        "caron" => '\u{30c}',
        "cedilla" | "commaaccent" => '\u{327}',
        "ogonek" => '\u{328}',
        _ => return None,
    };
    Some([letter, accent].into_iter().nfc().collect())
}

/// Names and their texts.
const NAMES: &str = "exclam=! quotedbl=\" numbersign=# dollar=$ percent=% ampersand=& quotesingle=' \
    quoteright=’ quoteleft=‘ parenleft=( parenright=) asterisk=* plus=+ comma=, period=. slash=/ \
    zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 colon=: semicolon=; \
    less=< equal== greater=> question=? at=@ bracketleft=[ backslash=\\ bracketright=] \
    asciicircum=^ underscore=_ grave=` braceleft={ bar=| braceright=} asciitilde=~ exclamdown=¡ \
    cent=¢ sterling=£ fraction=⁄ yen=¥ florin=ƒ section=§ currency=¤ quotedblleft=“ \
    quotedblright=” guillemotleft=« guillemotright=» guilsinglleft=‹ guilsinglright=› ff=ff fi=fi \
    fl=fl ffi=ffi ffl=ffl endash=– emdash=— dagger=† daggerdbl=‡ periodcentered=· paragraph=¶ \
    bullet=• quotesinglbase=‚ quotedblbase=„ ellipsis=… perthousand=‰ questiondown=¿ acute=´ \
    circumflex=ˆ tilde=˜ macron=¯ breve=˘ dotaccent=˙ dieresis=¨ ring=˚ cedilla=¸ ogonek=˛ \
    caron=ˇ AE=Æ ae=æ OE=Œ oe=œ Oslash=Ø oslash=ø Lslash=Ł lslash=ł germandbls=ß dotlessi=ı \
    dotlessj=ȷ Eth=Ð eth=ð Thorn=Þ thorn=þ ordfeminine=ª ordmasculine=º copyright=© registered=® \
    trademark=™ degree=° plusminus=± multiply=× divide=÷ onehalf=½ onequarter=¼ threequarters=¾ \
    onesuperior=¹ twosuperior=² threesuperior=³ mu=µ logicalnot=¬ brokenbar=¦ Euro=€ alpha=α \
    beta=β gamma=γ delta=δ epsilon=ε epsilon1=ϵ zeta=ζ eta=η theta=θ theta1=ϑ iota=ι kappa=κ \
    lambda=λ nu=ν xi=ξ pi=π rho=ρ sigma=σ sigma1=ς tau=τ upsilon=υ phi=φ phi1=ϕ chi=χ psi=ψ \
    omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω \
    infinity=∞ partialdiff=∂ summation=∑ product=∏ integral=∫ radical=√ lessequal=≤ \
    greaterequal=≥ notequal=≠ approxequal=≈ equivalence=≡ element=∈ arrowright=→ arrowleft=← \
    arrowup=↑ arrowdown=↓ arrowdblright=⇒ universal=∀ existential=∃ emptyset=∅ logicaland=∧ \
    logicalor=∨ similar=∼ proportional=∝ dotmath=⋅ asteriskmath=∗ nabla=∇ prime=′ union=∪ \
    intersection=∩ propersubset=⊂ reflexsubset=⊆ angbracketleft=⟨ angbracketright=⟩ check=✓ \
    visiblespace=␣ openbullet=◦ circleplus=⊕ circlemultiply=⊗ bardbl=‖ ellipsishorizontal=…";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_glyphs() {
        for (name, text) in [
            ("A", "A"),
            ("eacute", "é"),
            ("scommaaccent", "ş"),
            ("f_f_i", "ffi"),
            ("uni20AC", "€"),
            ("u1F600", "😀"),
            ("uniFB01", "fi"),
            ("one.oldstyle", "1"),
            ("equal", "="),
            ("germandbls", "ß"),
        ] {
            assert_eq!(of_name(name).as_deref(), Some(text), "{name}");
        }
        assert_eq!(of_name("g123"), None);
        assert_eq!(standard()[0xae].as_deref(), Some("fi"));
    }
}
