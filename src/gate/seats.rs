//! Seats: how many connections there may be, in all and of one user. A seat is given back when it is dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A fixed number of places.
#[derive(Debug, Clone)]
pub struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    in_all: usize,
    of_uid: HashMap<u32, usize>,
    limits: (usize, usize),
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// In all.
    #[error("all {0} places are taken")]
    InAll(usize),
    /// Of this user.
    #[error("all {0} places of this user are taken")]
    OfUid(usize),
}

impl Seats {
    /// So many in all, and so many of one user.
    pub fn new(limits: (usize, usize)) -> Seats {
        Seats(Arc::new(Mutex::new(Taken { in_all: 0, of_uid: HashMap::new(), limits })))
    }

    /// Changes the limits; who is seated stays.
    pub fn set(&self, limits: (usize, usize)) {
        super::lock(&self.0).limits = limits;
    }

    /// Takes a place for a user.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, uid: u32) -> Result<Seat, Full> {
        let mut taken = super::lock(&self.0);
        let (in_all, of_uid) = taken.limits;
        if taken.in_all >= in_all {
            return Err(Full::InAll(in_all));
        }
        let count = taken.of_uid.entry(uid).or_default();
        if *count >= of_uid {
            return Err(Full::OfUid(of_uid));
        }
        *count += 1;
        taken.in_all += 1;
        drop(taken);
        Ok(Seat { seats: self.clone(), uid })
    }
}

/// One place, taken.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    uid: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = super::lock(&self.seats.0);
        taken.in_all -= 1;
        if let Some(count) = taken.of_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.of_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_at_their_edges_and_seats_come_back() {
        let seats = Seats::new((3, 2));
        let first = seats.take(1).unwrap();
        let _second = seats.take(1).unwrap();
        assert_eq!(seats.take(1).unwrap_err(), Full::OfUid(2));
        let _third = seats.take(2).unwrap();
        assert_eq!(seats.take(3).unwrap_err(), Full::InAll(3));
        drop(first);
        assert!(seats.take(1).is_ok());
        seats.set((2, 2));
        assert_eq!(seats.take(9).unwrap_err(), Full::InAll(2));
    }
}
