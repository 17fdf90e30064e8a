//! The few forms of PromQL that are answered here, read by a parser whose work is bounded by the text's length: a selector,
//! `increase` of a selector with a range, `sum`, and parentheses around either.

use std::{iter::Peekable, str::CharIndices};

/// The longest query.
const QUERY_BYTES: usize = 4 << 10;
/// How deep parentheses and functions may stand in each other.
const DEPTH: usize = 32;
/// Memory that one regular expression may take.
const REGEX_BYTES: usize = 256 << 10;
/// The longest range, in seconds: a hundred years.
const RANGE_S: u64 = 100 * 365 * 86_400;

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Expression {
    /// The series that a selector names, as they are now.
    Now(Selector),
    /// How much the counters that a selector names have grown in the last seconds.
    Increase(Selector, u64),
    /// The sum of all series.
    Sum(Box<Expression>),
}

/// Series of one name with certain labels.
#[derive(Debug, Clone)]
pub struct Selector {
    /// Their name.
    pub name: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug, Clone)]
struct Matcher {
    label: String,
    wanted: Wanted,
    /// Whether it is to be otherwise.
    not: bool,
}

#[derive(Debug, Clone)]
enum Wanted {
    Text(String),
    Regex(regex::Regex),
}

impl Selector {
    /// Whether a series with these labels is among those asked for; a label that is not there is empty.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> &'a str) -> bool {
        self.matchers.iter().all(|matcher| {
            let value = label(&matcher.label);
            let same = match &matcher.wanted {
                Wanted::Text(text) => text == value,
                Wanted::Regex(regex) => regex.is_match(value),
            };
            same != matcher.not
        })
    }
}

/// Why a query is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// It is not PromQL, as far as it was read.
    Wrong(String),
    /// It is PromQL that only a Prometheus server answers.
    Unsupported(String),
}

fn wrong<T>(detail: impl Into<String>) -> Result<T, Unanswered> {
    Err(Unanswered::Wrong(detail.into()))
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, Unanswered> {
    Err(Unanswered::Unsupported(what.into()))
}

/// Reads a query.
///
/// # Errors
/// It is none, or none that is answered here.
pub fn read(query: &str) -> Result<Expression, Unanswered> {
    if query.len() > QUERY_BYTES {
        return wrong(format!("a query has at most {QUERY_BYTES} bytes, this has {}", query.len()));
    }
    let mut reader = Reader { text: query, rest: query.char_indices().peekable() };
    let expression = reader.expression(0)?;
    if reader.at_end() {
        return Ok(expression);
    }
    match reader.word() {
        Some(word @ ("offset" | "by" | "without" | "and" | "or" | "unless" | "bool")) => {
            unsupported(format!("`{word}`"))
        }
        Some(word) => wrong(format!("`{word}` is not expected there")),
        None => match reader.rest.peek() {
            Some((_, sign)) if "+-*/%^=!<>@[:".contains(*sign) => unsupported(format!("`{sign}` behind a selector")),
            _ => wrong(reader.unexpected()),
        },
    }
}

struct Reader<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn at_end(&mut self) -> bool {
        self.space();
        self.rest.peek().is_none()
    }

    fn unexpected(&mut self) -> String {
        match self.rest.peek() {
            Some((at, c)) => {
                format!("`{c}` at character {} is not expected there", self.text[..*at].chars().count() + 1)
            }
            None => "it ends too early".into(),
        }
    }

    fn takes(&mut self, sign: char) -> bool {
        self.space();
        self.rest.next_if(|(_, c)| *c == sign).is_some()
    }

    fn expect(&mut self, sign: char) -> Result<(), Unanswered> {
        if self.takes(sign) {
            return Ok(());
        }
        let seen = self.unexpected();
        wrong(format!("{seen}: `{sign}` is"))
    }

    /// A name of a metric, a label or a function.
    fn word(&mut self) -> Option<&'a str> {
        self.space();
        let (start, _) = *self.rest.peek()?;
        let begins = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | ':');
        self.rest.next_if(|(_, c)| begins(*c))?;
        while self.rest.next_if(|(_, c)| begins(*c) || c.is_ascii_digit()).is_some() {}
        let end = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        Some(&self.text[start..end])
    }

    fn expression(&mut self, depth: usize) -> Result<Expression, Unanswered> {
        if depth > DEPTH {
            return wrong(format!("it stands in more than {DEPTH} parentheses"));
        }
        if self.takes('(') {
            let inner = self.expression(depth + 1)?;
            self.expect(')')?;
            return Ok(inner);
        }
        let Some(word) = self.word() else {
            let seen = self.unexpected();
            return match self.rest.peek() {
                Some((_, sign)) if sign.is_ascii_digit() || "+-\"'`.".contains(*sign) => {
                    unsupported("numbers, signs and texts")
                }
                Some((_, '{')) => unsupported("a selector without a name"),
                _ => wrong(seen),
            };
        };
        match word {
            "sum" => {
                if let Some(modifier) = self.word() {
                    return unsupported(format!("`sum {modifier}`"));
                }
                self.expect('(')?;
                let inner = self.expression(depth + 1)?;
                self.expect(')')?;
                Ok(Expression::Sum(Box::new(inner)))
            }
            "increase" => {
                self.expect('(')?;
                let Some(name) = self.word() else { return wrong(self.unexpected()) };
                let selector = self.selector(name)?;
                if !self.takes('[') {
                    return unsupported("increase needs a counter with a range, like [5m], and what is given");
                }
                let seconds = self.range()?;
                self.expect(']')?;
                self.expect(')')?;
                Ok(Expression::Increase(selector, seconds))
            }
            name => {
                let selector = self.selector(name)?;
                if self.takes('(') {
                    let ends = self.rest.any(|(_, c)| c == ')');
                    return if ends { unsupported(format!("`{name}`")) } else { wrong("a parenthesis has no end") };
                }
                Ok(Expression::Now(selector))
            }
        }
    }

    fn selector(&mut self, name: &str) -> Result<Selector, Unanswered> {
        let mut selector = Selector { name: name.to_owned(), matchers: Vec::new() };
        if !self.takes('{') {
            return Ok(selector);
        }
        while !self.takes('}') {
            let Some(label) = self.word() else { return wrong(self.unexpected()) };
            let not = self.takes('!');
            if !not {
                self.expect('=')?;
            }
            let regex = self.takes('~');
            if not && !regex {
                self.expect('=')?;
            }
            let text = self.quoted()?;
            let wanted = if regex { Wanted::Regex(regex_of(&text)?) } else { Wanted::Text(text) };
            selector.matchers.push(Matcher { label: label.to_owned(), wanted, not });
            if !self.takes(',') {
                self.expect('}')?;
                break;
            }
        }
        Ok(selector)
    }

    fn quoted(&mut self) -> Result<String, Unanswered> {
        self.space();
        let Some((_, quote)) = self.rest.next_if(|(_, c)| matches!(c, '"' | '\'' | '`')) else {
            let seen = self.unexpected();
            return wrong(format!("{seen}: a text in quotes is"));
        };
        let mut text = String::new();
        while let Some((_, c)) = self.rest.next() {
            match c {
                _ if c == quote => return Ok(text),
                '\\' if quote != '`' => match self.rest.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, escaped @ ('\\' | '"' | '\''))) => text.push(escaped),
                    _ => return wrong("a text has an escape that is not known"),
                },
                c => text.push(c),
            }
        }
        wrong("a text in quotes has no end")
    }

    /// A range like `1h30m`, in seconds.
    fn range(&mut self) -> Result<u64, Unanswered> {
        let mut ms: u64 = 0;
        self.space();
        while self.rest.peek().is_some_and(|(_, c)| c.is_ascii_digit()) {
            let mut number: u64 = 0;
            while let Some((_, digit)) = self.rest.next_if(|(_, c)| c.is_ascii_digit()) {
                number = number.saturating_mul(10).saturating_add(u64::from(digit) - u64::from('0'));
            }
            let unit = match self.rest.next() {
                Some((_, 'm')) if self.rest.next_if(|(_, c)| *c == 's').is_some() => 1,
                Some((_, 's')) => 1_000,
                Some((_, 'm')) => 60_000,
                Some((_, 'h')) => 3_600_000,
                Some((_, 'd')) => 86_400_000,
                Some((_, 'w')) => 7 * 86_400_000,
                Some((_, 'y')) => 365 * 86_400_000,
                _ => return wrong("a range has units, like 5m or 1h30m"),
            };
            ms = ms.saturating_add(number.saturating_mul(unit));
        }
        match ms / 1000 {
            _ if ms == 0 => wrong("a range is above zero, like 5m"),
            seconds if seconds > RANGE_S => wrong("a range is at most 100 years"),
            seconds => Ok(seconds),
        }
    }
}

fn regex_of(text: &str) -> Result<regex::Regex, Unanswered> {
    let whole = format!("^(?s:{text})$");
    let built = regex::RegexBuilder::new(&whole).size_limit(REGEX_BYTES).nest_limit(DEPTH as u32).build();
    built.map_err(|error| Unanswered::Wrong(format!("a regular expression cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels<'a>(label: &str) -> &'a str {
        match label {
            "model_name" => "llama",
            "namespace" => "prod",
            _ => "",
        }
    }

    #[test]
    fn the_guides_forms_are_read() {
        let Ok(Expression::Now(selector)) = read(r#" vllm:x{model_name="llama", namespace!="dev",} "#) else {
            panic!()
        };
        assert!(selector.name == "vllm:x" && selector.matches(labels));
        for (query, matches) in [
            (r#"a{model_name=~"ll.*"}"#, true),
            (r#"a{model_name=~"l"}"#, false),
            (r#"a{model_name!~'l|m'}"#, true),
            ("a{other=\"\"}", true),
            (r"a{model_name=`ll\ama`}", false),
        ] {
            let Ok(Expression::Now(selector)) = read(query) else { panic!("{query}") };
            assert_eq!(selector.matches(labels), matches, "{query}");
        }
        let Ok(Expression::Sum(inner)) = read("(sum((increase(a{b='c'}[1h30m]))))") else { panic!() };
        assert!(matches!(*inner, Expression::Increase(_, 5_400)));
    }

    #[test]
    fn what_is_not_answered_says_why() {
        for query in [
            "rate(a[5m])",
            "sum by (x) (a)",
            "sum(a) by (x)",
            "a + b",
            "-a",
            "1",
            "a offset 5m",
            "a @ 5",
            "a[5m]",
            "increase(a)",
        ] {
            assert!(matches!(read(query), Err(Unanswered::Unsupported(_))), "{query}: {:?}", read(query));
        }
        let deep = format!("{}a", "(".repeat(2000));
        let long = "a".repeat(5000);
        for query in [
            "",
            "a{",
            "a{b}",
            "a{b=c}",
            "sum(",
            "increase(a[5])",
            "increase(a[0s])",
            "a b",
            "a)",
            &deep,
            &long,
            "a{b=~\"(\"}",
            "}{",
        ] {
            assert!(matches!(read(query), Err(Unanswered::Wrong(_))), "{query}: {:?}", read(query));
        }
        assert!(read(&format!("a{{b=~\"{}\"}}", "(x{1,900}){1,900}")).is_err(), "a regex that grows");
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "[-+a-z0-9:_(){}\\[\\]\"'`=~!,\\\\ µ]{0,200}") {
            let _ = read(&text);
        }
    }
}
