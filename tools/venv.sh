# Sourced by the other scripts: creates .venv once, installs rsdiff with the extras in $1, and puts it on PATH.
# PYTHON sets the interpreter (3.11 or newer), RSDIFF_VENV another folder for the environment. RSDIFF_NO_VENV=1 uses the
# python on PATH as it is, if you installed rsdiff yourself. CONSTRAINTS is a file to use instead of constraints.txt.
# If uv is on PATH, it installs the packages, ten times faster than pip.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ "${RSDIFF_NO_VENV:-}" = 1 ]; then return; fi
venv="${RSDIFF_VENV:-$root/.venv}"
[[ "$venv" = /* ]] || venv="$PWD/$venv"
constraints="${CONSTRAINTS:-$root/constraints.txt}"
stamp="$venv/.installed-$(cat "$root/setup.cfg" "$constraints" | cksum | cut -d' ' -f1)-$1"
if [ ! -e "$stamp" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: $python is missing or older than 3.11; set PYTHON=… to a newer one" >&2; exit 2; }
    echo "installing into $venv …" >&2
    "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv --clear "$venv"
    packages=(-c "$constraints" -e "$root[$1]")
    { command -v uv && uv pip install --quiet --python "$venv/bin/python" "${packages[@]}"; } > /dev/null ||
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    touch "$stamp"
fi
export PATH="$venv/bin:$PATH"
