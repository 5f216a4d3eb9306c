# Shared by quickstart, test and walk: finds a Python and makes virtual environments. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# The interpreter that environments are made from: $PYTHON, else the python3 in use, else a versioned one.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            # inside one of our own environments: the interpreter behind it
            "$candidate" - "$root" <<'PY'
import pathlib, sys
own = pathlib.Path(sys.prefix).is_relative_to(sys.argv[1])
print(sys._base_executable if own else sys.executable)
PY
            return
        fi
    done
    die "no Python 3.11 or newer with venv found; on Debian: apt-get install python3 python3-venv"
}

# The version of a torch that the interpreter has and that is new enough; nothing otherwise.
installed_torch() {
    "$1" - <<'PY'
from importlib import metadata
try:
    version = metadata.version("torch")
except metadata.PackageNotFoundError:
    version = "0.0"
if tuple(int(part) for part in version.split(".")[:2]) >= (2, 6):
    print(version)
PY
}

# expose_torch PYTHON VENV: lets VENV see the torch of PYTHON, and of its packages nothing else.
expose_torch() {
    "$1" - "$2" <<'PY'
import pathlib, re, sys
from importlib import metadata

view = pathlib.Path(sys.argv[1]).resolve() / "torch-only"
view.mkdir(exist_ok=True)
heavy, seen, queue = re.compile(r"torch|triton|pytorch|nvidia|cuda"), set(), ["torch"]
while queue:
    name = queue.pop()
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    if name in seen or not heavy.match(name):
        continue
    seen.add(name)
    queue += [re.split(r"[^\w.-]", requirement)[0].lower() for requirement in found.requires or []]
    for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        link = view / top
        if not link.exists():
            link.symlink_to(pathlib.Path(found.locate_file(top)).resolve())
site = next(view.parent.glob("lib/python*/site-packages"))
(site / "torch-only.pth").write_text(f"{view}\n")
PY
}

# make_environment FOLDER CONSTRAINTS EXTRAS: an environment with the project and its pinned dependencies.
# Does nothing when FOLDER was made from the same files and has the extras ("" or for example "dev,train").
make_environment() {
    local folder=$1 constraints=$2 extras=$3 python interpreter torch stamp pins
    python=$(find_python)
    interpreter="$python $("$python" -VV | tr '\n' ' ')"
    torch=$(installed_torch "$python")
    stamp=$(cat "$constraints" "$root/setup.cfg" "$root/scripts/lib.sh" <(echo "$interpreter $torch") \
        | sha256sum | cut -d' ' -f1)
    if [ "$(head -n 1 "$folder/made-from" 2>/dev/null)" = "$stamp" ] \
        && { [ -z "$extras" ] || [ "$(tail -n 1 "$folder/made-from")" = "$extras" ]; }; then
        return
    fi
    say "== making ${folder#"$root"/} with $("$python" -V) ($python)"
    if [ -n "$torch" ]; then
        say "   uses the installed torch $torch; downloads the other packages of ${constraints#"$root"/} (about 200 MB)"
    else
        say "   downloads torch and the other packages of ${constraints#"$root"/}: about 400 MB with a CPU build of"
        say "   torch, up to 3 GB where the index offers its CUDA build (to use your own torch, install it for $python)"
    fi
    if [ "$(cat "$folder/interpreter" 2>/dev/null)" != "$interpreter" ] || ! "$folder/bin/python" -c '' 2>/dev/null; then
        "$python" -m venv --clear "$folder"  # also when it was made by another interpreter, or a broken one
        echo "$interpreter" >"$folder/interpreter"
    fi
    pins=$(mktemp)
    if [ -n "$torch" ]; then
        { grep -v '^torch==' "$constraints"; echo "torch==$torch"; } >"$pins"
    else
        cp "$constraints" "$pins"
    fi
    "$folder/bin/python" -m pip install --quiet --upgrade --constraint "$pins" setuptools
    [ -z "$torch" ] || expose_torch "$python" "$folder"
    "$folder/bin/python" -m pip install --quiet --constraint "$pins" --no-build-isolation \
        --editable "$root${extras:+[$extras]}"
    rm -f "$pins"
    printf '%s\n%s\n' "$stamp" "$extras" >"$folder/made-from"
}
