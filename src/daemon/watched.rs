//! Waits until a file that clients go by may be gone, or another one may have its name.

use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kernel::watch::Names;

/// Some files' names, watched where the kernel tells of changes.
pub(super) struct Watched(Option<AsyncFd<Names>>);

impl Watched {
    /// Must be called from a tokio runtime.
    pub(super) fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Watched {
        // Deprecated for types that may lie about the descriptor they own; `Names` tells its own.
        // CHECK: https://github.com/tokio-rs/tokio/pull/8587
        #[allow(deprecated)]
        let watch = |names| AsyncFd::with_interest(names, Interest::READABLE).ok();
        Watched(Names::of(files).and_then(watch))
    }

    /// Waits until one of the names may have changed hands; for ever where nothing tells. Cancel safe.
    pub(super) async fn stirred(&mut self) {
        while let Some(names) = &self.0 {
            let Ok(mut ready) = names.readable().await else { break };
            match ready.try_io(|names| names.get_ref().take()) {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(_)) => break,
            }
        }
        self.0 = None;
        std::future::pending::<()>().await;
    }
}
