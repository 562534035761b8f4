//! A machine without a card says what it lacks.
#![allow(clippy::unwrap_used)]

use cuda::{Error, Gpu};

#[test]
fn what_is_missing_is_named() {
    match Gpu::count() {
        Err(error @ Error::Missing { .. }) => {
            let text = error.to_string();
            assert!(text.contains("the NVIDIA driver's library was not found"), "{text}");
            assert!(text.contains("libcuda.so.1"), "{text}");
            assert!(matches!(Gpu::open(0), Err(Error::Missing { .. })));
        }
        Err(error) => assert!(matches!(error, Error::Driver { .. } | Error::OldDriver { .. })),
        Ok(count) => {
            let error = Gpu::open(count).unwrap_err();
            assert!(
                matches!(error, Error::NoDevice { wanted, found } if wanted == count && found == count)
            );
        }
    }
}
