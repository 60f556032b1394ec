//! The one source of randomness: the operating system's (getrandom(2)).

use rand::TryRng;
use rand::rngs::SysRng;

/// The operating system gave no random bytes; nothing secret can be made.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness;

/// 32 bytes nobody else knows.
///
/// # Errors
/// [`NoRandomness`]; no weaker source is ever used instead.
pub fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}
