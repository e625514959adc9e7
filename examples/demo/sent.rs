//! What the demo's caller sends: made up values that stand for secrets. No line of the demo shows a
//! whole one, and `tests/examples.rs` reads them here to check that.

pub(crate) const SENT: [(&str, &str); 6] = [
    ("authorization", "Bearer alice-token-5f2c9e"),
    ("cookie", "session=b81d07aa43"),
    ("x-user-id", "user-alice-4711"),
    ("x-organization-id", "org-acme-01"),
    (
        "x-organization-ids",
        "acme-and-beta-0201,acme-and-gamma-0301",
    ),
    ("x-custom-header", "anything that the operator allows"),
];
