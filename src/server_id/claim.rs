//! A proof whose body nobody has seen yet. It may not know how the rest of it was proved.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::events;

pub(super) type Sha256Digest = [u8; 32];

pub(super) fn digest(body: &[u8]) -> Sha256Digest {
    Sha256::digest(body).into()
}

/// A proof that is good but for the body; in a request's extensions until that is here.
#[derive(Clone)]
pub(super) struct Claim(Arc<Open>);

struct Open {
    digest: Sha256Digest,
    is_settled: AtomicBool,
}

impl Claim {
    pub(super) fn new(digest: Sha256Digest) -> Self {
        let is_settled = AtomicBool::new(false);
        Self(Arc::new(Open { digest, is_settled }))
    }

    pub(super) fn is_of(&self, body: &[u8]) -> bool {
        self.0.is_settled.store(true, Ordering::Relaxed);
        digest(body).ct_eq(&self.0.digest).into()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !*self.is_settled.get_mut() {
            // Its absence is easily overlooked: everything works, but each proof is in vain.
            events::internal_forward(Err("the body was not compared; is `ServerIdLayer` inside?"));
        }
    }
}
