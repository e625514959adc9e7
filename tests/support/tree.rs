//! JSON as readers take it that know nothing of one another.

use std::collections::BTreeMap;

/// JSON as it was written: numbers by their text, members in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// Which of several members a reader takes for one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reader {
    First,
    Last,
    /// The last of those that are equal but for their case, and for what parts their words.
    Folding,
}

impl Reader {
    pub fn name(self, key: &str) -> String {
        match self {
            Self::First | Self::Last => key.to_owned(),
            Self::Folding => key.to_uppercase().to_lowercase().replace(['_', '-'], ""),
        }
    }
}

pub const READERS: [Reader; 3] = [Reader::First, Reader::Last, Reader::Folding];

/// A reader by recursive descent; `None` where it is not JSON, or nested absurdly deep.
pub fn read(text: &str) -> Option<Tree> {
    let mut rest = text;
    let tree = value(&mut rest, 0)?;
    blank(&mut rest);
    rest.is_empty().then_some(tree)
}

fn blank(rest: &mut &str) {
    *rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
}

fn eat(rest: &mut &str, token: &str) -> Option<()> {
    blank(rest);
    *rest = rest.strip_prefix(token)?;
    Some(())
}

fn value(rest: &mut &str, depth: usize) -> Option<Tree> {
    if depth > 300 {
        return None;
    }
    blank(rest);
    if eat(rest, "null").is_some() {
        return Some(Tree::Null);
    }
    for bool in [true, false] {
        if eat(rest, &bool.to_string()).is_some() {
            return Some(Tree::Bool(bool));
        }
    }
    match rest.chars().next()? {
        '"' => text(rest).map(Tree::Text),
        '[' => {
            eat(rest, "[")?;
            let mut list = Vec::new();
            if eat(rest, "]").is_some() {
                return Some(Tree::List(list));
            }
            loop {
                list.push(value(rest, depth + 1)?);
                if eat(rest, "]").is_some() {
                    return Some(Tree::List(list));
                }
                eat(rest, ",")?;
            }
        }
        '{' => {
            eat(rest, "{")?;
            let mut members = Vec::new();
            if eat(rest, "}").is_some() {
                return Some(Tree::Object(members));
            }
            loop {
                blank(rest);
                let key = text(rest)?;
                eat(rest, ":")?;
                members.push((key, value(rest, depth + 1)?));
                if eat(rest, "}").is_some() {
                    return Some(Tree::Object(members));
                }
                eat(rest, ",")?;
            }
        }
        _ => {
            let end = rest.find(|c: char| !"+-.0123456789eE".contains(c));
            let (number, after) = rest.split_at(end.unwrap_or(rest.len()));
            *rest = after;
            // Whether it is one, serde_json has said.
            (!number.is_empty()).then(|| Tree::Number(number.to_owned()))
        }
    }
}

fn text(rest: &mut &str) -> Option<String> {
    let mut units: Vec<u16> = Vec::new();
    let mut chars = rest.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &rest[at + 2..];
                return String::from_utf16(&units).ok();
            }
            '\\' => units.push(match chars.next()?.1 {
                'u' => {
                    let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                    u16::from_str_radix(&digits, 16).ok()?
                }
                'b' => 8,
                'f' => 12,
                'n' => 10,
                'r' => 13,
                't' => 9,
                plain => u16::try_from(u32::from(plain)).ok()?,
            }),
            plain => units.extend(plain.encode_utf16(&mut [0; 2]).iter()),
        }
    }
    None
}

/// What `reader` makes of a tree: one member for each key, sorted.
pub fn canonical(tree: &Tree, reader: Reader) -> Tree {
    match tree {
        Tree::List(list) => Tree::List(list.iter().map(|tree| canonical(tree, reader)).collect()),
        Tree::Object(members) => {
            let mut read = BTreeMap::new();
            for (key, tree) in members {
                let (key, tree) = (reader.name(key), canonical(tree, reader));
                if reader == Reader::First {
                    read.entry(key).or_insert(tree);
                } else {
                    read.insert(key, tree);
                }
            }
            Tree::Object(read.into_iter().collect())
        }
        other => other.clone(),
    }
}
