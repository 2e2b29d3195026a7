//! One CUDA device: its context, its stream, and launches of its kernels. Everything happens in the order of one stream.
//!
//! What a kernel does to memory of the device cannot be checked here: it is the kernels' tests that tell. Launches are
//! safe nevertheless: kernels are given no addresses of the host, and a wild one on the device ends in an error.
#![expect(unsafe_code, reason = "calls the driver")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::ptr::null_mut;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{CudaContext, CudaModule, CudaStream, sys};
use cudarc::nvrtc::Ptx;

use super::error::{Asked, CudaError};
use super::modules::{Module, Signature};
use super::order::Order;
use super::{CudaDevice, CudaUnavailable, driver_present, facts};

/// A device that was opened. Clones are the same device and the same stream.
#[derive(Clone)]
pub struct Device {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    facts: CudaDevice,
    /// Shared memory that a block can ask for, bytes.
    shared_bytes_max: i32,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) order: Order,
    pub(super) capturing: AtomicBool,
    /// Those that were asked for. Never unloaded: kernels are handles into them.
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

/// A kernel, ready to be launched on the device it was loaded on.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    function: sys::CUfunction,
    signature: &'static Signature,
    ordinal: usize,
}

// SAFETY: a handle that only the driver reads, which may be called from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

impl Eq for Kernel {}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on device {}", self.signature.name, self.ordinal)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.shared.facts).finish()
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Blocks in x, y and z.
    pub(crate) grid: [u32; 3],
    /// Threads a block.
    pub(crate) threads: u32,
    /// Dynamic shared memory a block.
    pub(crate) shared_bytes: u32,
    /// Whether the kernel may begin before the one ahead of it has ended (programmatic dependent launch, compute capability
    /// 9.0 and later): only for kernels that wait by themselves before they touch what others write.
    pub(crate) overlaps: bool,
}

/// What a kernel is given: `words` holds the parameters in order, each beginning at a word of its own, as C lays it out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameters<'a> {
    /// Where in `words` each parameter begins.
    pub(crate) starts: &'a [u32],
    /// The parameters; words after the last one are ignored.
    pub(crate) words: &'a [u64],
}

/// More than any kernel has.
const PARAMETERS_MAX: usize = 16;

impl Device {
    /// Opens the device with that number.
    ///
    /// # Errors
    /// When there is no driver, no such device, it is too old, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        if !driver_present() {
            return Err(CudaUnavailable::NoDriver.into());
        }
        let devices = CudaContext::device_count().map_err(CudaUnavailable::from)?;
        let devices = usize::try_from(devices).unwrap_or(0);
        if ordinal >= devices {
            return Err(CudaError::NoSuchDevice { ordinal, devices });
        }
        let context = CudaContext::new(ordinal).map_err(CudaUnavailable::from)?;
        let facts = facts(&context).map_err(CudaUnavailable::from)?;
        if facts.compute_capability < (8, 0) {
            return Err(CudaError::TooOld { name: facts.name, capability: facts.compute_capability });
        }
        // SAFETY: events between streams are not needed, as there is one stream; and they would be captured.
        unsafe { context.disable_event_tracking() };
        // The default stream cannot be captured.
        let stream = context.new_stream().asked("a stream")?;
        let shared_bytes_max = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .asked("its limits")?;
        let (order, capturing, modules) = (Order::default(), AtomicBool::new(false), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { facts, shared_bytes_max, context, stream, order, capturing, modules }) })
    }

    /// What the driver said of it when it was opened.
    pub fn facts(&self) -> &CudaDevice {
        &self.shared.facts
    }

    /// Memory that nobody uses now.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory_free_bytes(&self) -> Result<usize, CudaError> {
        self.shared.context.mem_get_info().map(|(free, _)| free).asked("its free memory")
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// When a kernel failed.
    pub fn synchronise(&self) -> Result<(), CudaError> {
        let issued = self.shared.order.issued();
        self.shared.stream.synchronize().asked("to finish")?;
        self.shared.order.complete(issued);
        Ok(())
    }

    /// A kernel of `kernels/MODULE.cu`. Loads what is not loaded yet, which may take seconds the first time on a machine:
    /// not for the middle of a step.
    ///
    /// # Errors
    /// When the build has no such kernel for the device, or the driver does not understand it.
    pub(crate) fn kernel(&self, module: &str, kernel: &str) -> Result<Kernel, CudaError> {
        let missing = || CudaError::NoKernel { module: module.to_owned(), kernel: kernel.to_owned() };
        let known = Module::named(module).ok_or_else(missing)?;
        let image = known.image(self.shared.facts.compute_capability).ok_or_else(missing)?;
        let signature = image.signature(kernel).ok_or_else(missing)?;
        let mut modules = self.shared.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match modules.get(known.name) {
            Some(loaded) => loaded.clone(),
            None => {
                let loaded = self.load(known.name, image.bytes())?;
                modules.insert(known.name, loaded.clone());
                loaded
            }
        };
        drop(modules);
        let function = loaded.load_function(kernel).asked("a kernel")?;
        // The driver would load the code when it is first launched, which may be in a capture: this makes it do so now.
        let own = function.shared_size_bytes().asked("a kernel's needs")?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, self.shared.shared_bytes_max - own).asked("shared memory")?;
        // The handle stays valid: modules are kept for as long as the device.
        Ok(Kernel { function: function.cu_function(), signature, ordinal: self.shared.facts.ordinal })
    }

    fn load(&self, name: &str, image: Vec<u8>) -> Result<Arc<CudaModule>, CudaError> {
        let image = match String::from_utf8(image) {
            Ok(text) => Ptx::from_src(text),
            Err(binary) => Ptx::from_binary(binary.into_bytes()),
        };
        self.shared.context.load_module(image).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | sys::CUresult::CUDA_ERROR_INVALID_PTX => {
                CudaError::DriverTooOld { module: name.to_owned() }
            }
            _ => CudaError::new("a module", error),
        })
    }

    /// Puts a kernel on the stream.
    ///
    /// # Errors
    /// When the driver refuses the shape, or an earlier kernel failed.
    ///
    /// # Panics
    /// When the parameters are not as many or not as large as the kernel's, or it was loaded on another device.
    pub(crate) fn launch(&self, kernel: Kernel, shape: Shape, parameters: Parameters<'_>) -> Result<(), CudaError> {
        assert_eq!(kernel.ordinal, self.shared.facts.ordinal, "{kernel:?} is launched on another device");
        let mut addresses = kernel.addresses(parameters);
        self.shared.context.bind_to_thread().asked("its context")?;
        let Shape { grid: [x, y, z], threads, shared_bytes, overlaps } = shape;
        let (stream, arguments) = (self.shared.stream.cu_stream(), addresses.as_mut_ptr());
        let overlaps = overlaps && self.shared.facts.compute_capability >= (9, 0);
        let launched = if overlaps {
            let mut attribute = overlap_attribute();
            let configuration = sys::CUlaunchConfig {
                gridDimX: x,
                gridDimY: y,
                gridDimZ: z,
                blockDimX: threads,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: shared_bytes,
                hStream: stream,
                attrs: &raw mut attribute,
                numAttrs: 1,
            };
            // SAFETY: the function is loaded, and `addresses` checked that each parameter is there in full; the driver
            // copies them before it returns.
            unsafe { sys::cuLaunchKernelEx(&raw const configuration, kernel.function, arguments, null_mut()) }
        } else {
            // SAFETY: as above.
            unsafe {
                sys::cuLaunchKernel(
                    kernel.function,
                    x,
                    y,
                    z,
                    threads,
                    1,
                    1,
                    shared_bytes,
                    stream,
                    arguments,
                    null_mut(),
                )
            }
        };
        launched.result().asked("a launch")
    }
}

impl Kernel {
    /// Where each parameter lies, after a check that all of it is there.
    fn addresses(&self, Parameters { starts, words }: Parameters<'_>) -> [*mut c_void; PARAMETERS_MAX] {
        let sizes = self.signature.parameter_bytes;
        assert_eq!(starts.len(), sizes.len(), "{self:?} has {} parameters", sizes.len());
        let mut addresses = [null_mut(); PARAMETERS_MAX];
        for (index, (&start, &bytes)) in starts.iter().zip(sizes).enumerate() {
            let start = start as usize;
            let end = start + bytes.div_ceil(8);
            // The last one may be followed by the parameters of other launches.
            let exact = starts.get(index + 1).is_none_or(|&next| next as usize == end);
            assert!(exact && end <= words.len(), "parameter {index} of {self:?} has {bytes} bytes");
            addresses[index] = words[start..].as_ptr().cast_mut().cast();
        }
        addresses
    }
}

fn overlap_attribute() -> sys::CUlaunchAttribute {
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}
