//! The JSON grammar (RFC 8259), read once from front to back, without a tree and without recursion.
//!
//! It may not know what a message is.

use std::{iter, ops::Range, str};

/// How many containers may be open at once: as many as `u128` has bits.
const MAX_DEPTH: u32 = 128;

/// Why a text cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is not JSON.
    Syntax,
    /// It is nested too deep.
    Depth,
}

/// A place in a text.
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Goes over white space, and shows what comes then.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at).copied() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                next => return next,
            }
        }
    }

    /// Goes over white space and `byte`, if that comes then.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    pub(super) fn require(&mut self, byte: u8) -> Result<(), Broken> {
        self.take(byte).then_some(()).ok_or(Broken::Syntax)
    }

    /// Nothing may come any more.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        self.peek().map_or(Ok(()), |_| Err(Broken::Syntax))
    }

    /// Reads an object; `member` reads each value, and is told its key.
    pub(super) fn object<E: From<Broken>>(
        &mut self,
        mut member: impl FnMut(&mut Self, Text<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.require(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            if self.take(b'}') {
                return Ok(());
            }
            self.require(b',')?;
        }
    }

    fn key(&mut self) -> Result<Text<'a>, Broken> {
        let key = self.string()?;
        self.require(b':')?;
        Ok(key)
    }

    /// Reads a value that stands in `depth` containers, and says where it is.
    pub(super) fn value(&mut self, depth: u32) -> Result<Range<usize>, Broken> {
        self.peek();
        let start = self.at;
        let mut open = Open {
            objects: 0,
            depth,
            outside: depth,
        };
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    open.push(true)?;
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    open.push(false)?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(Broken::Syntax),
            }
            // A value has ended, or an empty container is about to.
            while let Some(is_object) = open.innermost() {
                match (self.peek(), is_object) {
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        open.pop();
                    }
                    (Some(b','), _) => {
                        self.at += 1;
                        if is_object {
                            self.key()?;
                        }
                        break;
                    }
                    _ => return Err(Broken::Syntax),
                }
            }
            if open.innermost().is_none() {
                return Ok(start..self.at);
            }
        }
    }

    fn literal(&mut self, text: &[u8]) -> Result<(), Broken> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.starts_with(text) {
            self.at += text.len();
            Ok(())
        } else {
            Err(Broken::Syntax)
        }
    }

    fn number(&mut self) -> Result<(), Broken> {
        self.one(b"-");
        if !self.one(b"0") {
            self.digits()?;
        }
        if self.one(b".") {
            self.digits()?;
        }
        if self.one(b"eE") {
            self.one(b"+-");
            self.digits()?;
        }
        Ok(())
    }

    fn one(&mut self, of: &[u8]) -> bool {
        let next = self.bytes.get(self.at);
        let found = next.is_some_and(|byte| of.contains(byte));
        self.at += usize::from(found);
        found
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        (self.at > start).then_some(()).ok_or(Broken::Syntax)
    }

    pub(super) fn string(&mut self) -> Result<Text<'a>, Broken> {
        self.require(b'"')?;
        let start = self.at;
        let mut seen = 0;
        let mut is_escaped = false;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += plain(rest, &mut seen);
            match self.bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    is_escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                // A control byte, or the end.
                _ => return Err(Broken::Syntax),
            }
        }
        let raw = self.bytes.get(start..self.at).ok_or(Broken::Syntax)?;
        self.at += 1;
        if seen & NOT_ASCII != 0 && str::from_utf8(raw).is_err() {
            return Err(Broken::Syntax);
        }
        Ok(Text {
            start: start - 1,
            raw,
            is_escaped,
        })
    }

    /// What follows a backslash. Half a surrogate pair is no character, and readers differ in what
    /// they make of it.
    fn escape(&mut self) -> Result<(), Broken> {
        if self.one(b"\"\\/bfnrt") {
            return Ok(());
        }
        let is_low = |code| (0xDC00..=0xDFFF).contains(&code);
        match self.code()? {
            0xD800..=0xDBFF if self.one(b"\\") && is_low(self.code()?) => Ok(()),
            0xD800..=0xDFFF => Err(Broken::Syntax),
            _ => Ok(()),
        }
    }

    /// `u` and four hexadecimal digits.
    fn code(&mut self) -> Result<u32, Broken> {
        let digits = self.bytes.get(self.at..self.at + 5);
        let code = digits.and_then(|digits| hex(digits.strip_prefix(b"u")?));
        self.at += 5;
        code.ok_or(Broken::Syntax)
    }
}

/// The containers that are open.
struct Open {
    /// One bit for each, the innermost first: whether it is an object.
    objects: u128,
    depth: u32,
    outside: u32,
}

impl Open {
    fn push(&mut self, is_object: bool) -> Result<(), Broken> {
        if self.depth == MAX_DEPTH {
            return Err(Broken::Depth);
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(is_object);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
    }

    fn innermost(&self) -> Option<bool> {
        (self.depth > self.outside).then_some(self.objects & 1 == 1)
    }
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const NOT_ASCII: u64 = ONES << 7;

/// How many bytes go by until a quote, a backslash or a control byte; each of them is in `seen`.
///
/// Eight at a time: in each byte of `x - ONES & !x & NOT_ASCII` the top bit says that the byte of `x`
/// was zero, and is right up to the first one.
fn plain(rest: &[u8], seen: &mut u64) -> usize {
    let zeros = |x: u64| x.wrapping_sub(ONES) & !x;
    let (words, tail) = rest.as_chunks();
    let mut length = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        *seen |= word;
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let special = (quotes | backslashes | controls) & NOT_ASCII;
        if special != 0 {
            return length + special.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    let more = tail.iter().position(special).unwrap_or(tail.len());
    tail.iter().for_each(|byte| *seen |= u64::from(*byte));
    length + more
}

fn hex(digits: &[u8]) -> Option<u32> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    digits
        .iter()
        .try_fold(0, |code, byte| Some(code << 4 | digit(byte)?))
}

/// A string as it was written, and where its quote stands.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) start: usize,
    raw: &'a [u8],
    is_escaped: bool,
}

/// How a key reads, beside a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Likeness {
    Same,
    /// Some readers take it for the name.
    Alike,
    Other,
}

impl Text<'_> {
    pub(super) fn likeness(&self, name: &str) -> Likeness {
        let raw = str::from_utf8(self.raw).unwrap_or_default();
        if !self.is_escaped && raw == name {
            return Likeness::Same;
        }
        // Readers in C stop at a zero.
        let read = unescaped(raw).take_while(|c| *c != '\0');
        if self.is_escaped && unescaped(raw).eq(name.chars()) {
            Likeness::Same
        } else if folded(read).eq(folded(name.chars())) {
            Likeness::Alike
        } else {
            Likeness::Other
        }
    }
}

/// The characters of a string that is well-formed. One that is written as a surrogate pair becomes
/// two others: no name has it.
fn unescaped(raw: &str) -> impl Iterator<Item = char> {
    let mut chars = raw.chars();
    iter::from_fn(move || match chars.next()? {
        '\\' => Some(match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (digits, rest) = chars.as_str().split_at_checked(4)?;
                chars = rest.chars();
                let code = hex(digits.as_bytes()).and_then(char::from_u32);
                code.unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            other => other,
        }),
        plain => Some(plain),
    })
}

/// As readers that ignore case do it, of whichever kind: four characters outside ASCII are one of its
/// letters in the other case. To those with names in camel case, `_` and `-` only part words.
fn folded(text: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    let letters = text.filter(|c| !matches!(c, '_' | '-'));
    letters.map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        c => c.to_ascii_lowercase(),
    })
}
