#![no_main]

/// With `QUIC_DIST_FUZZ_SEEDS=FOLDER`: writes what all targets begin with there, and ends.
fn write_seeds() {
    let Some(folder) = std::env::var_os("QUIC_DIST_FUZZ_SEEDS") else {
        return;
    };
    for (number, (target, bytes)) in quic_dist_engine::fuzzing::seeds().iter().enumerate() {
        let folder = std::path::Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        std::fs::write(folder.join(format!("seed{number}")), bytes).expect("a file can be made");
    }
    std::process::exit(0);
}

libfuzzer_sys::fuzz_target!(init: write_seeds(), |data: &[u8]| {
    quic_dist_engine::fuzzing::endpoint(data);
});
