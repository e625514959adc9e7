//! What cannot be reached through the public API in a short time.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

/// Here, because to make so many proofs takes long.
#[test]
#[cfg_attr(miri, ignore = "it takes minutes there, and has no memory of its own")]
fn a_proof_that_nobody_can_remember_is_503() {
    let forward = InternalForward::new([("k1", [7; 32])]).unwrap();
    let verify = || {
        let mut request = Request::post("/servers/a/mcp").body("").unwrap();
        forward.sign(&mut request).unwrap();
        let (mut parts, _) = request.into_parts();
        let mark = parts.headers.remove(MARK).unwrap();
        forward.verify(&parts, &mark)
    };
    let nonces = &forward.inner.nonces;
    for count in 1..1_u128 << 18 {
        assert!(nonces.insert(count.to_be_bytes()).is_ok());
    }
    assert!(verify().is_ok());
    let Err(Doubt::Worker(rejection)) = verify() else {
        unreachable!("one more was remembered, or counts as from outside");
    };
    assert!(rejection.to_string().starts_with("503: too many"));
}
