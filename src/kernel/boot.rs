//! Which boot of the machine this is: what tells a pid or an inode of now from one of before.

/// The kernel's own name for this boot; `None` where it does not tell.
pub fn id() -> Option<String> {
    #[cfg(target_os = "linux")]
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    #[cfg(target_os = "macos")]
    let id = bootsessionuuid()?;
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    let id = String::new();
    let id = id.trim().to_owned();
    (!id.is_empty()).then_some(id)
}

/// `kern.bootsessionuuid` (sysctlbyname(3)).
#[cfg(target_os = "macos")]
fn bootsessionuuid() -> Option<String> {
    let mut buffer = [0u8; 64];
    let mut length = buffer.len();
    // SAFETY: the name ends in a zero byte; the buffer is writable for the length that is passed, and
    // the kernel writes back how much it used; nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            buffer.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    if result != 0 {
        return None;
    }
    let text = buffer.get(..length)?.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_boot_has_a_name_that_does_not_change() {
        let id = super::id().unwrap();
        assert!(id.len() >= 32 && Some(id) == super::id());
    }
}
