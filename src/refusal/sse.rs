//! The look-ahead into an event stream: has it said anything yet?
//!
//! Bytes in, a verdict out. It may not know bodies, clocks or refusals. The format is the HTML
//! standard's, section "Server-sent events", "Parsing an event stream".

/// Fields that say nothing by themselves, with `data`, which does.
const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
const LONGEST_FIELD: usize = 5;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// Looks for the first `data` line that has a value, or for the first byte that is no event stream.
///
/// Comments, other fields and empty `data` lines, as in the events by which servers prime a
/// reconnection, say nothing.
#[derive(Debug)]
pub(crate) struct LookAhead {
    /// How much of a byte order mark has come; `None` behind it.
    bom: Option<usize>,
    line: Line,
}

/// Where in a line the next byte is.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// In the name of a field, of which this much has come.
    Name {
        bytes: [u8; LONGEST_FIELD],
        len: usize,
    },
    /// Behind `data:`, and perhaps behind the one space that is no part of the value.
    Data { space: bool },
    /// In a comment, or in a value that says nothing.
    Silent,
}

const START: Line = Line::Name {
    bytes: [0; LONGEST_FIELD],
    len: 0,
};

impl LookAhead {
    pub(crate) fn new() -> Self {
        Self {
            bom: Some(0),
            line: START,
        }
    }

    /// Whether the stream has said something once `bytes`, which follow those of earlier calls, have
    /// come.
    pub(crate) fn sees(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| self.sees_byte(*byte))
    }

    fn sees_byte(&mut self, byte: u8) -> bool {
        match self.bom {
            Some(seen) if BOM.get(seen) == Some(&byte) => {
                self.bom = Some(seen + 1).filter(|seen| *seen < BOM.len());
                return false;
            }
            Some(0) | None => self.bom = None,
            Some(_) => return true,
        }
        let ends = matches!(byte, b'\r' | b'\n');
        self.line = match self.line {
            Line::Name { bytes, len } => {
                let name = bytes.get(..len).unwrap_or_default();
                match byte {
                    // An empty line, or a field without a value.
                    _ if ends && (name.is_empty() || FIELDS.contains(&name)) => START,
                    b':' if name == b"data" => Line::Data { space: false },
                    b':' if name.is_empty() || FIELDS.contains(&name) => Line::Silent,
                    _ => match longer(bytes, len, byte) {
                        Some(line) => line,
                        None => return true,
                    },
                }
            }
            Line::Data { .. } | Line::Silent if ends => START,
            Line::Data { space: false } if byte == b' ' => Line::Data { space: true },
            Line::Data { .. } => return true,
            Line::Silent => Line::Silent,
        };
        false
    }
}

/// The name with one byte more, if a field begins so.
fn longer(mut bytes: [u8; LONGEST_FIELD], len: usize, byte: u8) -> Option<Line> {
    *bytes.get_mut(len)? = byte;
    let name = bytes.get(..=len)?;
    let is_known = FIELDS.iter().any(|field| field.starts_with(name));
    is_known.then_some(Line::Name {
        bytes,
        len: len + 1,
    })
}
