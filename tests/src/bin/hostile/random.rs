//! Numbers that look random, the same for the same seed (xorshift64*).

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// Below `end`.
    pub(crate) fn below_u32(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).expect("below 32 bits")
    }

    /// Below `end`.
    pub(crate) fn below_u16(&mut self, end: u16) -> u16 {
        u16::try_from(self.below(end.into())).expect("below 16 bits")
    }

    /// Any 16 bits.
    pub(crate) fn any_u16(&mut self) -> u16 {
        self.below(0x1_0000).try_into().expect("16 bits")
    }

    /// Once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = usize::try_from(self.below(choices.len() as u64)).expect("an index");
        choices[index]
    }

    /// What tends to break arithmetic of 32 bits.
    pub(crate) fn awkward(&mut self) -> u32 {
        let any = u32::try_from(self.next() >> 32).expect("32 bits");
        self.pick(&[
            0,
            1,
            2,
            3,
            44,
            0xffff,
            0x1_0000,
            0x7fff_ffff,
            0x8000_0000,
            u32::MAX,
            any,
            any & 0xff,
        ])
    }
}
