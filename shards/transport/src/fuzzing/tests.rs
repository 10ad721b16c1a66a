// SPDX-License-Identifier: Apache-2.0
//! The fuzz target's property over random and mutated bytes, the same in every run.

use super::{SUBJECTS, Subject, check, seeds};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) as usize % bound
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

#[test]
fn seeds_hold() {
    for mut seed in seeds() {
        for cuts in 0..20 {
            seed[1] = cuts;
            check(&seed);
        }
    }
}

#[test]
fn random_bytes_hold() {
    let mut random = Random(1);
    for _ in 0..40_000 {
        let bytes = random.below(40);
        let mut data: Vec<u8> = (0..bytes).map(|_| random.byte()).collect();
        // most often a frame that may be there, else few would get past their first byte
        if let [choice, _, first, second, ..] = &mut data[..]
            && matches!(
                SUBJECTS[usize::from(*choice) % SUBJECTS.len()],
                Subject::Frames
            )
            && random.below(8) > 0
        {
            *first = [0x82, 0x02, 0x89, 0x8a, 0x88][random.below(5)];
            *second |= 0x80;
        }
        check(&data);
    }
}

#[test]
fn mutated_seeds_hold() {
    let mut random = Random(2);
    let seeds = seeds();
    for _ in 0..60_000 {
        let mut data = seeds[random.below(seeds.len())].clone();
        data[1] = random.byte();
        for _ in 0..=random.below(3) {
            let at = 2 + random.below(data.len() - 2);
            match random.below(5) {
                0 => data[at] = random.byte(),
                1 => data[at] ^= 1 << random.below(8),
                2 => data.insert(at, random.byte()),
                3 if data.len() > 3 => _ = data.remove(at),
                _ => {
                    let other = &seeds[random.below(seeds.len())];
                    data.truncate(at + 1);
                    data.extend_from_slice(&other[2 + random.below(other.len() - 2)..]);
                }
            }
        }
        check(&data);
    }
}

#[test]
fn random_clients_hold() {
    let mut random = Random(3);
    for _ in 0..1_000 {
        let commands = random.below(60);
        let mut data = vec![Subject::Client as u8, random.byte()];
        // Close is rare, else nothing would follow
        data.extend((0..commands).map(|_| match random.byte() {
            close if close & 0xf == 0xf && random.below(4) > 0 => close & 0xf0,
            command => command,
        }));
        check(&data);
    }
}
