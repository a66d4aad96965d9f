#!/usr/bin/env bash
# Make .venv in the checkout: a Python that imports dials, cctbx, torch and this
# package, whichever DIALS the machine has. Called by `make env`; takes a
# fraction of a second when there is nothing to do.
#
#   DIALS_PYTHON=/path/to/python make env     use the DIALS of that Python
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$root/.venv-setup.log
stamp=$venv/dials_hybrid.stamp
torch_version=2.13.0
unset PYTHONHOME # a wrapper of some other Python may have left it
exec </dev/null  # nothing here asks

say() { echo "make env: $*"; }

die() {
  echo "make env: $*" >&2
  exit 1
}

# Run a step with its output in the log alone.
quiet() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1
}

must() {
  quiet "$@" || {
    tail -n 12 "$log" >&2
    die "this failed: $*
make env: the whole log is $log"
  }
}

# --- what is there already ----------------------------------------------------

# The stamp holds, in its first line, a hash of all that the set-up depends on,
# and in its second the command that started the Python with DIALS.
fingerprint() {
  {
    echo "$root" "${DIALS_PYTHON-}"
    cat "$root/pyproject.toml" "$root/setup.py" "${BASH_SOURCE[0]}"
  } | cksum
}

up_to_date() {
  [[ -f $stamp && -x $venv/bin/dials.hybrid_refine ]] &&
    [[ $(sed -n 1p "$stamp") == "$(fingerprint)" ]] &&
    "$venv/bin/python" - 2>/dev/null <<'PY'
import importlib.util as u
import libtbx.load_env
names = """dials dxtbx iotbx cctbx numpy scipy torch h5py tqdm jinja2 matplotlib pytest
xdist hypothesis dials_hybrid"""
raise SystemExit(any(u.find_spec(n) is None for n in names.split()))
PY
}

# --- a Python with DIALS ------------------------------------------------------

# The package "dials" of PyPI is a placeholder, hence the import of something
# real. The environment that is to be made is not a place to look for DIALS.
has_dials() {
  "$1" - "$venv" >>"$log" 2>&1 <<'PY'
import os, sys
if os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1]):
    raise SystemExit("this is the environment being made")
from dials.array_family import flex
import dxtbx.model, iotbx.cif
if sys.version_info < (3, 10):
    raise SystemExit("has DIALS, but Python %d.%d is too old" % sys.version_info[:2])
PY
}

# Prints the first of some commands that starts a Python with DIALS.
find_dials() {
  local candidate
  for candidate in "$@"; do
    candidate=$(command -v "$candidate" || echo "$candidate")
    echo "+ does $candidate have DIALS?" >>"$log"
    if has_dials "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

as_root=()
can_apt() {
  command -v apt-get >/dev/null || return 1
  [[ $(id -u) == 0 ]] && return
  as_root=(sudo -n)
  sudo -n true 2>/dev/null
}

apt_install() {
  can_apt || return 1
  say "installing $* with apt" >&2
  quiet "${as_root[@]}" apt-get update || true # an old list may do
  quiet "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$@"
}

choose_dials() {
  if [[ -n ${DIALS_PYTHON-} ]]; then
    find_dials "$DIALS_PYTHON" ||
      die "DIALS_PYTHON=$DIALS_PYTHON cannot import DIALS with Python >= 3.10; see $log"
    return
  fi
  local last
  last=$(sed -n 2p "$stamp" 2>/dev/null || true)
  find_dials ${last:+"$last"} python3 python /usr/bin/python3 dials.python \
    libtbx.python && return
  apt_install python3-dials python3-venv && find_dials /usr/bin/python3 && return
  die "no DIALS found, and it could not be installed with apt (see $log).
Install it with conda and try again in that environment:
    conda env create -f environment.yml && conda activate dials_hybrid
or, on Debian or Ubuntu: apt-get install python3-dials python3-venv.
A DIALS elsewhere is named by DIALS_PYTHON=/path/to/its/python."
}

# --- the virtual environment --------------------------------------------------

venv_usable() {
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
    grep -qi '^include-system-site-packages *= *true' "$venv/pyvenv.cfg" &&
    [[ $("$venv/bin/python" -c "$identity") == "$("$python" -c "$identity")" ]]
}
identity='import sys; print(sys.base_prefix, sys.version)'

make_venv() {
  venv_usable && return
  if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    apt_install python3-venv || true # Debian keeps these apart
  fi
  must "$python" -m venv --clear --system-site-packages "$venv"
}

venv_imports_dials() {
  quiet "$venv/bin/python" -c 'from dials.array_family import flex
import dxtbx.model, iotbx.cif'
}

# libtbx reads its configuration from a folder under sys.prefix (lib/cctbx/pythonX.Y
# in Debian, share/cctbx in conda), which in a virtual environment is another one.
# Where DIALS is not installed in a prefix at all (a source build, whose own
# python command sets the paths) these paths are written into the environment.
connect_dials() {
  venv_imports_dials && return
  must "$dials" - "$venv" <<'PY'
import os, sys
import libtbx.load_env

venv = sys.argv[1]
build = os.path.realpath(abs(libtbx.env.build_path))
inside = os.path.relpath(build, os.path.realpath(sys.prefix))
link = os.path.join(venv, inside)
if not inside.startswith(os.pardir) and os.path.realpath(link) != build:
    os.makedirs(os.path.dirname(link), exist_ok=True)
    if os.path.islink(link):
        os.remove(link)
    os.symlink(build, link)
PY
  venv_imports_dials && return
  must "$dials" - "$venv" <<'PY'
import os, subprocess, sys
import libtbx.load_env

python = os.path.join(sys.argv[1], "bin", "python")
ask = "import sys, sysconfig; print(sysconfig.get_path('purelib'), *sys.path, sep='\\n')"
clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
site, *known = subprocess.check_output(
    [python, "-c", ask], text=True, env=clean
).splitlines()
build = os.path.realpath(abs(libtbx.env.build_path))
with open(os.path.join(site, "dials_hybrid_paths.pth"), "w") as pth:
    print("import os; os.environ.setdefault('LIBTBX_BUILD', %r)" % build, file=pth)
    for path in sys.path:
        if path and path not in known and os.path.isdir(path):
            print(path, file=pth)
PY
  venv_imports_dials ||
    die "DIALS works in $dials but not in a virtual environment made from it; see $log"
}

# --- torch and the rest -------------------------------------------------------

has_torch() {
  quiet "$venv/bin/python" -c 'import torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1), torch.__version__'
}

# Any torch that is there is kept, one for CUDA too. Otherwise the build for CPUs,
# which is a tenth of the size; the versions are fixed, since an open range
# would take whatever is newest.
install_torch() {
  has_torch && return
  say "installing torch $torch_version"
  quiet "$venv/bin/python" -m pip uninstall -y torch || true # a broken one
  quiet pip_install "torch==$torch_version+cpu" || # from a local index or wheel
    quiet pip_install "torch==$torch_version+cpu" \
      --index-url https://download.pytorch.org/whl/cpu ||
    quiet pip_install "torch==$torch_version" || # the only one for macOS
    die "could not install torch $torch_version; see $log"
  has_torch || die "torch was installed but does not import; see $log
or start anew: rm -rf $venv"
}

# numpy stays the one that DIALS was built with.
pip_install() {
  "$venv/bin/python" -m pip install --constraint "$venv/constraints.txt" "$@"
}

# The checkout itself, and then what it requires and Python cannot find. This is
# not left to pip, which would put a second h5py beside Debian's, since that one
# goes by another name there.
install_package() {
  local ready='' missing
  # Without a network there is no isolated build; with a setuptools that can make
  # a wheel there is no need for one.
  if "$venv/bin/python" -c 'import setuptools
if int(setuptools.__version__.split(".")[0]) < 71: import wheel' 2>/dev/null; then
    ready=yes
  fi
  must pip_install ${ready:+--no-build-isolation} --no-deps --editable "$root"
  missing=$("$venv/bin/python" - 2>>"$log" <<'PY'
import importlib.util, re
from importlib.metadata import requires
for line in requires("dials_hybrid"):
    spec, _, marker = line.partition(";")
    name = re.match(r"[\w-]+", spec)[0]
    module = {"pytest-xdist": "xdist"}.get(name, name)
    if "lint" not in marker and "fast" not in marker and importlib.util.find_spec(module) is None:
        print(spec.strip())
PY
  )
  if [[ -n $missing ]]; then
    # shellcheck disable=SC2086  # one word for each
    must pip_install $missing
  fi
}

# Machine code for processors; all works without it, so that nothing fails here.
install_numba() {
  quiet "$venv/bin/python" -c 'import numba' && return
  quiet pip_install "numba>=0.59" "coverage>=7" &&
    quiet "$venv/bin/python" -c 'import numba' ||
    say "no numba for this Python: refinements will take longer; see $log"
}

# --- go -----------------------------------------------------------------------

# One at a time; the descriptor is that of the checkout itself.
exec 9<"$root"
if command -v flock >/dev/null; then flock 9; fi

if up_to_date; then exit 0; fi
: >"$log"
dials=$(choose_dials)
# Behind the command may be a wrapper, and behind that the interpreter.
python=$("$dials" -c 'import sys; print(sys.executable)')
say "using the DIALS of $dials"
make_venv
connect_dials
"$venv/bin/python" -c 'import numpy; print("numpy==" + numpy.__version__)' \
  >"$venv/constraints.txt"
install_torch
install_package
install_numba
{
  fingerprint
  echo "$dials"
} >"$stamp"
say "$("$venv/bin/python" -c 'import sys, torch, dials.util.version as v
print("ready:", v.dials_version() + ", torch", torch.__version__ + ", Python",
      sys.version.split()[0])' 2>>"$log")"
