//! Exact arithmetic: `+ - * /`, parentheses, whole and decimal numbers.
//!
//! Values are fractions of 128-bit integers, so `0.1 + 0.2` is `0.3` and `1/3*3` is `1`. A result
//! without a finite decimal expansion is cut after [`PLACES`] places and ends in `...`.

use thiserror::Error;

/// Longest expression, in bytes.
pub const LENGTH: usize = 1000;
/// Deepest nesting of parentheses and signs.
pub const DEPTH: usize = 64;
/// Decimal places of a result whose expansion doesn't end.
pub const PLACES: usize = 12;

/// Why there is no result; worded for the model that asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CalculatorError {
    /// The expression is too long.
    #[error("the expression is longer than {LENGTH} bytes")]
    Long,
    /// The expression is nested too deeply.
    #[error("the expression is nested deeper than {DEPTH}")]
    Deep,
    /// Something else was expected.
    #[error("expected a number at position {0}")]
    Number(usize),
    /// A parenthesis isn't closed.
    #[error("expected ) at position {0}")]
    Unclosed(usize),
    /// Something follows the expression.
    #[error("unexpected {0:?} at position {1}")]
    Unexpected(char, usize),
    /// Division by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// A number doesn't fit.
    #[error("the numbers are too large")]
    Overflow,
}

use CalculatorError::*;

/// Computes an expression, e.g. `12*(3 - 4.5)` to `-18`. Positions in errors count from 1.
///
/// # Errors
/// What is wrong with the expression.
pub fn calculate(expression: &str) -> Result<String, CalculatorError> {
    if expression.len() > LENGTH {
        return Err(Long);
    }
    let characters: Vec<char> = expression.chars().collect();
    let mut parser = Parser { characters: &characters, at: 0, depth: 0 };
    let value = parser.sum()?;
    match parser.peek() {
        None => value.decimal().ok_or(Overflow),
        Some(c) => Err(Unexpected(c, parser.at + 1)),
    }
}

/// A fraction in lowest terms, `down` positive.
#[derive(Clone, Copy)]
struct Fraction {
    up: i128,
    down: i128,
}

impl Fraction {
    fn new(up: i128, down: i128) -> Option<Self> {
        let (mut a, mut b) = (up.unsigned_abs(), down.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a).ok()?;
        let (up, down) = (up.checked_div(divisor)?, down.checked_div(divisor)?);
        if down < 0 {
            Some(Fraction { up: up.checked_neg()?, down: down.checked_neg()? })
        } else {
            Some(Fraction { up, down })
        }
    }

    fn add(self, other: Self) -> Option<Self> {
        let left = self.up.checked_mul(other.down)?;
        let right = other.up.checked_mul(self.down)?;
        Self::new(left.checked_add(right)?, self.down.checked_mul(other.down)?)
    }

    fn negate(self) -> Option<Self> {
        Some(Fraction { up: self.up.checked_neg()?, down: self.down })
    }

    fn multiply(self, other: Self) -> Option<Self> {
        // Across first, so that products which fit after reduction do not overflow before.
        let (a, b) = (Self::new(self.up, other.down)?, Self::new(other.up, self.down)?);
        Self::new(a.up.checked_mul(b.up)?, a.down.checked_mul(b.down)?)
    }

    fn invert(self) -> Option<Self> {
        Self::new(self.down, self.up)
    }

    /// Decimal digits, all of them where they end. `None` if they don't fit.
    fn decimal(self) -> Option<String> {
        let (mut rest, mut places) = (self.down, 0);
        // A denominator 2^a 5^b needs max(a, b) places.
        for prime in [2, 5] {
            let mut power = 0;
            while rest % prime == 0 {
                rest /= prime;
                power += 1;
            }
            places = places.max(power);
        }
        let exact = rest == 1;
        if !exact {
            places = PLACES;
        }
        let scale = 10i128.checked_pow(u32::try_from(places).ok()?)?;
        let digits = (self.up.unsigned_abs() % self.down.unsigned_abs())
            .checked_mul(scale.unsigned_abs())?
            / self.down.unsigned_abs();
        let sign = if self.up < 0 { "-" } else { "" };
        let whole = self.up.unsigned_abs() / self.down.unsigned_abs();
        Some(match places {
            0 => format!("{sign}{whole}"),
            _ if exact => format!("{sign}{whole}.{digits:0places$}"),
            _ => format!("{sign}{whole}.{digits:0places$}..."),
        })
    }
}

/// Recursive descent, one method a level of precedence.
struct Parser<'a> {
    characters: &'a [char],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    /// The next character that isn't white space.
    fn peek(&mut self) -> Option<char> {
        while self.characters.get(self.at).is_some_and(|c| c.is_whitespace()) {
            self.at += 1;
        }
        self.characters.get(self.at).copied()
    }

    fn sum(&mut self) -> Result<Fraction, CalculatorError> {
        let mut value = self.product()?;
        loop {
            let minus = match self.peek() {
                Some('+') => false,
                Some('-' | '−') => true,
                _ => return Ok(value),
            };
            self.at += 1;
            let right = self.product()?;
            let right = if minus { right.negate().ok_or(Overflow)? } else { right };
            value = value.add(right).ok_or(Overflow)?;
        }
    }

    fn product(&mut self) -> Result<Fraction, CalculatorError> {
        let mut value = self.signed()?;
        loop {
            let divide = match self.peek() {
                Some('*' | '×' | '·') => false,
                Some('/' | '÷') => true,
                _ => return Ok(value),
            };
            self.at += 1;
            let mut right = self.signed()?;
            if divide {
                if right.up == 0 {
                    return Err(DivisionByZero);
                }
                right = right.invert().ok_or(Overflow)?;
            }
            value = value.multiply(right).ok_or(Overflow)?;
        }
    }

    fn signed(&mut self) -> Result<Fraction, CalculatorError> {
        let mut negative = false;
        let mut signs = 0;
        while let Some(c @ ('+' | '-' | '−')) = self.peek() {
            negative ^= c != '+';
            signs += 1;
            self.at += 1;
            if signs > DEPTH {
                return Err(Deep);
            }
        }
        let value = self.atom()?;
        if negative { value.negate().ok_or(Overflow) } else { Ok(value) }
    }

    fn atom(&mut self) -> Result<Fraction, CalculatorError> {
        if self.peek() != Some('(') {
            return self.number();
        }
        if self.depth == DEPTH {
            return Err(Deep);
        }
        self.at += 1;
        self.depth += 1;
        let value = self.sum()?;
        self.depth -= 1;
        if self.peek() != Some(')') {
            return Err(Unclosed(self.at + 1));
        }
        self.at += 1;
        Ok(value)
    }

    /// `12`, `1.5`, `.5` or `5.`.
    fn number(&mut self) -> Result<Fraction, CalculatorError> {
        let start = self.at;
        let (mut up, mut down, mut digits, mut point) = (0i128, 1i128, 0, false);
        while let Some(&c) = self.characters.get(self.at) {
            match c.to_digit(10) {
                Some(digit) => {
                    digits += 1;
                    up = up
                        .checked_mul(10)
                        .and_then(|u| u.checked_add(digit.into()))
                        .ok_or(Overflow)?;
                    if point {
                        down = down.checked_mul(10).ok_or(Overflow)?;
                    }
                }
                None if c == '.' && !point => point = true,
                None => break,
            }
            self.at += 1;
        }
        if digits == 0 {
            return Err(Number(start + 1));
        }
        Fraction::new(up, down).ok_or(Overflow)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Results of calculator.py, computed with Python's fractions.
    #[test]
    fn computes_what_python_computes() {
        let fixture = include_str!("../tests/fixtures/calculator.json");
        let cases: Vec<(String, String)> = serde_json::from_str(fixture).unwrap();
        assert!(cases.len() > 300);
        for (expression, result) in cases {
            let computed = calculate(&expression).unwrap_or_else(|e| e.to_string());
            assert_eq!(computed, result, "{expression}");
        }
    }

    #[test]
    fn reads_what_people_write() {
        for (expression, result) in [
            ("12*34", "408"),
            (" 7 − 10 ", "-3"),
            ("6×7÷2", "21"),
            (".5 + 5.", "5.5"),
            ("--(3)", "3"),
            ("2--2", "4"),
            ("1/3*3", "1"),
            ("-1/3", "-0.333333333333..."),
            ("0/5", "0"),
            ("-0", "0"),
        ] {
            assert_eq!(calculate(expression).as_deref(), Ok(result), "{expression}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (expression, error) in [
            ("", Number(1)),
            ("1+", Number(3)),
            ("2*(3+4", Unclosed(7)),
            ("2 3", Unexpected('3', 3)),
            ("1.2.3", Unexpected('.', 4)),
            ("1)", Unexpected(')', 2)),
            ("x", Number(1)),
            (".", Number(1)),
            ("2**3", Number(3)),
            ("1/(2-2)", DivisionByZero),
            ("170141183460469231731687303715884105728", Overflow),
            ("99999999999999999999*99999999999999999999", Overflow),
        ] {
            assert_eq!(calculate(expression), Err(error), "{expression}");
        }
        assert_eq!(calculate(&"(".repeat(900)), Err(Deep));
        assert_eq!(calculate(&"-".repeat(900)), Err(Deep));
        assert_eq!(calculate(&" ".repeat(1001)), Err(Long));
        assert_eq!(
            calculate(&format!("{}1{}", "(".repeat(64), ")".repeat(64))).as_deref(),
            Ok("1")
        );
        assert_eq!(calculate("1/".repeat(400).trim_end_matches('/')).as_deref(), Ok("1"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(expression in "[-+*/(). 0-9]{0,60}|.{0,40}") {
            let _ = calculate(&expression);
        }
    }
}
