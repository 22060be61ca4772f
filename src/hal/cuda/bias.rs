//! Biases in the dtype of a product's output, which is what cuBLASLt adds.

use super::CudaDevice;
use super::memory::DeviceMemory;
use super::stream::CudaStream;
use crate::base::{DType, Result};
use crate::hal::{Allocation, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;

/// Columns of the widest product with a bias.
const MAX_BIAS: usize = 1 << 20;
/// Room for one bias of any width, and behind it for those that are kept.
const ONE_BYTES: usize = MAX_BIAS * 2;
pub(super) const BYTES: usize = 2 * ONE_BYTES;
/// Biases that are kept begin at multiples of this.
const ALIGN: usize = 256;

/// A stream's narrowed biases. A bias is a weight, whose numbers never change, so one that fits is narrowed once.
#[derive(Debug)]
pub(super) struct Biases {
    room: DeviceMemory,
    kept: RefCell<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// By address, columns and dtype. The tensor keeps the address from being another's.
    places: HashMap<(u64, usize, DType), (Tensor, u64)>,
    used: usize,
}

impl Kept {
    /// Where behind `room` a bias of so many bytes can stand.
    fn place(&mut self, bytes: usize) -> Option<usize> {
        let (from, end) = (ONE_BYTES + self.used, self.used + bytes.next_multiple_of(ALIGN));
        (end <= BYTES - ONE_BYTES).then(|| {
            self.used = end;
            from
        })
    }
}

impl Biases {
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self { room: DeviceMemory::new(&device.context, BYTES)?, kept: RefCell::default() })
    }

    /// The address of `bias`, F32 `[1, N]`, as numbers of `dtype`, F16 or BF16; good until the next call at least.
    pub(super) fn narrowed(&self, s: &CudaStream, bias: &Tensor, dtype: DType) -> Result<u64> {
        assert!(bias.cols() <= MAX_BIAS, "a bias of {} columns", bias.cols());
        let key = (bias.addr(), bias.cols(), dtype);
        let mut kept = self.kept.borrow_mut();
        if let Some((_, place)) = kept.places.get(&key) {
            return Ok(*place);
        }
        // What is recorded has not run.
        let place = if s.is_recording() { None } else { kept.place(bias.cols() * dtype.size()) };
        let to = self.room.addr() + place.unwrap_or(0) as u64;
        s.convert(bias, (to, dtype))?;
        if place.is_some() {
            kept.places.insert(key, (bias.clone(), to));
        }
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_stand_one_behind_the_other_until_the_room_is_full() {
        let mut kept = Kept::default();
        assert_eq!(kept.place(2304), Some(ONE_BYTES));
        assert_eq!(kept.place(100), Some(ONE_BYTES + 2304));
        assert_eq!(kept.place(1), Some(ONE_BYTES + 2560));
        assert_eq!(kept.place(BYTES - ONE_BYTES), None);
        let places: Vec<_> = std::iter::from_fn(|| kept.place(1 << 16)).collect();
        assert!(places.iter().all(|from| from.is_multiple_of(ALIGN) && from + (1 << 16) <= BYTES), "{places:?}");
    }
}
