//! Which connection a datagram belongs to: connection ids (RFC 9000, section 5.1) to keys.

use std::collections::HashMap;

use quiche::ConnectionId;

/// The length of the connection ids that we choose, in bytes. With 16 random bytes nobody guesses
/// one, and two never meet.
pub const ID_LEN: usize = 16;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Table {
    keys: HashMap<ConnectionId<'static>, usize>,
}

impl Table {
    /// Registers an id; false if it is taken.
    #[must_use]
    pub fn insert(&mut self, id: ConnectionId<'static>, key: usize) -> bool {
        match self.keys.entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(key);
                true
            }
        }
    }

    /// Forgets an id.
    pub fn remove(&mut self, id: &ConnectionId<'static>) {
        self.keys.remove(id);
    }

    /// The connection that has this id.
    pub fn get(&self, id: &[u8]) -> Option<usize> {
        fn find<'a>(
            keys: &HashMap<ConnectionId<'a>, usize>,
            id: &ConnectionId<'a>,
        ) -> Option<usize> {
            keys.get(id).copied()
        }
        find(&self.keys, &ConnectionId::from_ref(id))
    }

    /// How many ids are registered.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// A new random connection id.
pub fn random_id() -> Result<ConnectionId<'static>, boring::error::ErrorStack> {
    let mut id = vec![0; ID_LEN];
    boring::rand::rand_bytes(&mut id)?;
    Ok(ConnectionId::from_vec(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_to_their_connection_until_removed() {
        let mut table = Table::default();
        let (a, b) = (random_id().unwrap(), random_id().unwrap());
        assert!(table.insert(a.clone(), 1));
        assert!(table.insert(b.clone(), 2));
        assert!(!table.insert(a.clone(), 3), "taken");
        assert_eq!(table.get(&a), Some(1));
        table.remove(&a);
        assert_eq!(table.get(&a), None);
        assert_eq!(table.get(&b), Some(2));
        assert_eq!(table.len(), 1);
    }
}
