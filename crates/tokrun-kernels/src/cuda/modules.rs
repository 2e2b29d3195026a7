//! The kernels that the crate carries, and which image of them suits a device.

use std::io::Read;

use flate2::read::DeflateDecoder;

/// The kernels of one file `kernels/NAME.cu`.
pub(super) struct Module {
    pub(super) name: &'static str,
    /// What suits fewest devices first.
    images: &'static [Image],
}

/// What the driver can load: PTX, or a binary for several targets.
pub(super) struct Image {
    /// The least compute capability it runs on, 8.0 as 80.
    target: i32,
    /// Whether it runs on no other.
    exact: bool,
    deflated: &'static [u8],
    kernels: &'static [Signature],
}

/// A kernel and the sizes of its parameters.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) parameter_bytes: &'static [usize],
}

/// Made by `build.rs`.
pub(super) static MODULES: &[Module] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

impl Module {
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        MODULES.iter().find(|module| module.name == name)
    }

    /// The image for a device.
    pub(super) fn image(&self, (major, minor): (i32, i32)) -> Option<&'static Image> {
        let device = 10 * major + minor;
        self.images.iter().find(|image| if image.exact { image.target == device } else { image.target <= device })
    }
}

impl Image {
    /// What the driver loads.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        DeflateDecoder::new(self.deflated).read_to_end(&mut bytes).expect("build.rs has made it whole");
        bytes
    }

    pub(super) fn signature(&self, kernel: &str) -> Option<&'static Signature> {
        self.kernels.iter().find(|signature| signature.name == kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_kernels_for_every_device_that_is_supported() {
        for module in MODULES {
            for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
                let image = module.image(capability).unwrap_or_else(|| panic!("{} on {capability:?}", module.name));
                assert!(!image.kernels.is_empty() && !image.deflated.is_empty(), "{}", module.name);
            }
        }
    }

    #[test]
    fn parameters_have_the_sizes_that_the_kernel_declares() {
        let image = Module::named("bandwidth").and_then(|module| module.image((9, 0))).expect("it is carried");
        let signature = image.signature("bandwidth_read").expect("it is in there");
        assert_eq!(signature.parameter_bytes, [8, 8, 8]);
        assert!(image.signature("bandwidth").is_none());
        let text = image.bytes();
        assert!(text.len() > image.deflated.len() && text.windows(14).any(|word| word == b"bandwidth_read"));
    }

    /// An image for exactly 9.0 comes before the one that 9.0 can run too, and is not for 10.0.
    #[test]
    fn the_most_special_image_that_runs_is_taken() {
        static IMAGES: [Image; 3] = [
            Image { target: 90, exact: true, deflated: b"90a", kernels: &[] },
            Image { target: 90, exact: false, deflated: b"90", kernels: &[] },
            Image { target: 80, exact: false, deflated: b"80", kernels: &[] },
        ];
        let module = Module { name: "some", images: &IMAGES };
        let chosen = |capability| module.image(capability).map(|image| image.deflated);
        assert_eq!(chosen((7, 5)), None);
        assert_eq!(chosen((8, 6)), Some(&b"80"[..]));
        assert_eq!(chosen((9, 0)), Some(&b"90a"[..]));
        assert_eq!(chosen((12, 0)), Some(&b"90"[..]));
    }
}
