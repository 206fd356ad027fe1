# What the scripts of this folder share: sourced by them with $0 in scripts/, never run. POSIX sh, because the NIF must build where
# there is no bash.

project=$(cd "$(dirname "$0")/.." && pwd -P)

say() { printf '== %s\n' "$*" >&2; }

# die MESSAGE [LINE...]: lines after the first are advice.
die() {
  printf 'quic_dist: %s\n' "$1" >&2
  shift
  [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
  exit 1
}

# Runs a command as root, whoever we are.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    die "this needs root, and there is no sudo" "as root: $*"
  fi
}

# The oldest Rust that builds this project.
rust_wanted() { sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' "$project/Cargo.toml" | head -n 1; }

# Puts a cargo that is new enough on PATH, and says in $rust_found what there is otherwise.
find_rust() {
  rust_found=''
  for rust_folder in '' "${CARGO_HOME:-${HOME:-/root}/.cargo}/bin" /usr/local/cargo/bin; do
    [ -z "$rust_folder" ] || [ -x "$rust_folder/cargo" ] || continue
    # in the project's folder: rustup chooses by folder
    rust_version=$(cd "$project" && PATH=${rust_folder:+$rust_folder:}$PATH cargo --version 2>/dev/null | awk '{print $2}') || continue
    [ -n "$rust_version" ] || continue
    if [ "$(printf '%s\n' "$(rust_wanted)" "$rust_version" | sort -V | head -n 1)" = "$(rust_wanted)" ]; then
      PATH=${rust_folder:+$rust_folder:}$PATH
      export PATH
      return 0
    fi
    rust_found=$rust_version
  done
  return 1
}
