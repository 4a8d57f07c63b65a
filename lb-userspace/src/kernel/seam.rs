//! A place to look between two writes of maps, for tests: debug builds have it, others do not.
//!
//! What a packet may see of an update is decided by the order of its writes. A test stops after each
//! one and looks. A batch, of which the kernel does not say how far it is, is then written one element
//! at a time.

#[cfg(debug_assertions)]
pub use self::watch::look_after_each_write;

/// Says that a map was written: its kernel id.
#[inline]
pub(super) fn written(map: u32) {
    #[cfg(debug_assertions)]
    watch::look(map);
    #[cfg(not(debug_assertions))]
    let _ = map;
}

/// Whether somebody looks after each write of this thread.
#[inline]
pub(super) fn is_watched() -> bool {
    #[cfg(debug_assertions)]
    return watch::is_on();
    #[cfg(not(debug_assertions))]
    false
}

#[cfg(debug_assertions)]
mod watch {
    use std::cell::RefCell;

    type Look = Box<dyn FnMut(u32)>;

    thread_local! {
        static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) };
    }

    /// Calls `look` with the map's kernel id after each write of a map this thread makes while `act`
    /// runs. `look` must not write maps itself.
    pub fn look_after_each_write<T>(look: impl FnMut(u32) + 'static, act: impl FnOnce() -> T) -> T {
        /// Ends the looking, also if `act` panics.
        struct Until;
        impl Drop for Until {
            fn drop(&mut self) {
                LOOK.set(None);
            }
        }
        LOOK.set(Some(Box::new(look)));
        let _until = Until;
        act()
    }

    pub(super) fn look(map: u32) {
        LOOK.with_borrow_mut(|look| {
            if let Some(look) = look {
                look(map);
            }
        });
    }

    pub(super) fn is_on() -> bool {
        LOOK.with_borrow(Option::is_some)
    }
}
