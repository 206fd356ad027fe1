//! A table by the numbers of streams that costs little beside what is in it: many thousands of streams
//! may be open, and idle.
//!
//! `HashMap` doubles, so that just behind that more than half of it is empty, and is never smaller
//! again. This one grows by an eighth, so that three quarters of it are taken at the least while they become
//! more, but for a few entries, and becomes smaller when most of it is empty. An entry is at its own place or behind it with none free in between, so one
//! that is taken out leaves no mark, and finding one takes a few steps: numbers that follow each other
//! are far from each other in it.
//!
//! Ids come from the peer, which has shown what it is allowed by: one that keeps only such as belong to the same
//! place makes the steps many, up to the number of streams that it may have open.

/// See the module's documentation.
#[derive(Debug)]
pub struct Ids<V> {
    slots: Vec<Option<(u64, V)>>,
    count: usize,
}

/// Of so many slots, `FULL.0 / FULL.1` are taken at most.
const FULL: (usize, usize) = (7, 8);
/// Below `1 / SPARSE` it becomes smaller.
const SPARSE: usize = 4;
const FEWEST: usize = 8;

impl<V> Default for Ids<V> {
    fn default() -> Self {
        Ids {
            slots: Vec::new(),
            count: 0,
        }
    }
}

impl<V> Ids<V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where an id belongs: the golden ratio's multiples, modulo one, are as far from each other as
    /// can be.
    fn place(&self, id: u64) -> usize {
        let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(spread) * self.slots.len() as u128) >> 64) as usize
    }

    fn behind(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() {
            0
        } else {
            slot + 1
        }
    }

    /// Where an id is.
    fn find(&self, id: u64) -> Option<usize> {
        if self.count == 0 {
            return None;
        }
        let mut slot = self.place(id);
        loop {
            match &self.slots[slot] {
                Some((other, _)) if *other == id => return Some(slot),
                Some(_) => slot = self.behind(slot),
                None => return None,
            }
        }
    }

    /// What is there for this id.
    pub fn get(&self, id: u64) -> Option<&V> {
        let slot = self.find(id)?;
        self.slots[slot].as_ref().map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut V> {
        let slot = self.find(id)?;
        self.slots[slot].as_mut().map(|(_, value)| value)
    }

    /// Whether there is anything.
    pub fn contains(&self, id: u64) -> bool {
        self.find(id).is_some()
    }

    /// Puts something there; what was there before.
    pub fn insert(&mut self, id: u64, value: V) -> Option<V> {
        if let Some(there) = self.get_mut(id) {
            return Some(std::mem::replace(there, value));
        }
        if (self.count + 1) * FULL.1 > self.slots.len() * FULL.0 {
            let more = (self.slots.len() / 8).max(FEWEST);
            self.resize(self.slots.len() + more);
        }
        self.count += 1;
        self.put(id, value);
        None
    }

    /// Of one that is not there, where there is room.
    fn put(&mut self, id: u64, value: V) {
        let mut slot = self.place(id);
        while self.slots[slot].is_some() {
            slot = self.behind(slot);
        }
        self.slots[slot] = Some((id, value));
    }

    /// Takes out what is there.
    pub fn remove(&mut self, id: u64) -> Option<V> {
        let mut free = self.find(id)?;
        let removed = self.slots[free].take();
        self.count -= 1;
        // What follows moves up, unless its own place is behind the one that became free.
        let mut slot = self.behind(free);
        while let Some((other, _)) = &self.slots[slot] {
            let place = self.place(*other);
            let stays = if free < slot {
                free < place && place <= slot
            } else {
                free < place || place <= slot
            };
            if !stays {
                self.slots[free] = self.slots[slot].take();
                free = slot;
            }
            slot = self.behind(slot);
        }
        if self.slots.len() > FEWEST && self.count * SPARSE < self.slots.len() {
            self.resize((self.slots.len() / 2).max(FEWEST));
        }
        removed.map(|(_, value)| value)
    }

    /// Keeps those of which this is true.
    pub fn retain(&mut self, keeps: impl Fn(u64, &V) -> bool) {
        let gone: Vec<u64> = self
            .iter()
            .filter(|(id, value)| !keeps(*id, value))
            .map(|(id, _)| id)
            .collect();
        for id in gone {
            self.remove(id);
        }
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.slots.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut V)> {
        let taken = self.slots.iter_mut().flatten();
        taken.map(|(id, value)| (*id, value))
    }

    fn resize(&mut self, slots: usize) {
        let mut new = Vec::with_capacity(slots);
        new.resize_with(slots, || None);
        for (id, value) in std::mem::replace(&mut self.slots, new)
            .into_iter()
            .flatten()
        {
            self.put(id, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_what_a_hash_map_is(
            steps in prop::collection::vec((any::<bool>(), 0_u64..300, any::<bool>()), 0..2000)
        ) {
            let (mut ids, mut model) = (Ids::default(), HashMap::new());
            for (number, (adds, id, scattered)) in steps.into_iter().enumerate() {
                // Some that have their places close together.
                let id = if scattered { id << 40 } else { 4 * id };
                if adds {
                    prop_assert_eq!(ids.insert(id, number), model.insert(id, number));
                } else {
                    prop_assert_eq!(ids.remove(id), model.remove(&id));
                }
                prop_assert_eq!(ids.get(id), model.get(&id));
                prop_assert_eq!(ids.len(), model.len());
            }
            let mut all: Vec<(u64, usize)> = ids.iter().map(|(id, n)| (id, *n)).collect();
            all.sort_unstable();
            let mut expected: Vec<(u64, usize)> = model.clone().into_iter().collect();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
            ids.retain(|id, n| id % 8 == 0 && n % 2 == 0);
            model.retain(|id, n| id % 8 == 0 && *n % 2 == 0);
            prop_assert_eq!(ids.len(), model.len());
            prop_assert!(ids.iter().all(|(id, n)| model.get(&id) == Some(n)));
        }
    }

    #[test]
    fn it_is_as_large_as_what_is_in_it() {
        let mut ids = Ids::default();
        for n in 1..=30_000 {
            ids.insert(4 * n, ());
            assert!(
                ids.slots.len() * 3 <= 4 * ids.len() + 4 * FEWEST,
                "{} slots for {n}",
                ids.slots.len()
            );
        }
        for n in 1..=29_000 {
            ids.remove(4 * n);
        }
        assert!(ids.slots.len() <= 4 * 1000);
        assert!((29_001..=30_000).all(|n| ids.contains(4 * n)));
    }

    #[test]
    fn those_that_follow_each_other_are_found_at_once() {
        let mut ids = Ids::default();
        for n in 0..20_000_u64 {
            ids.insert(4 * n + 1, n);
        }
        let steps: usize = ids
            .iter()
            .map(|(id, _)| {
                let (from, at) = (ids.place(id), ids.find(id).unwrap());
                (at + ids.slots.len() - from) % ids.slots.len()
            })
            .sum();
        assert!(steps < 20_000, "{steps} steps for 20,000");
    }
}
