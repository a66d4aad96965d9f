#!/bin/sh
# Simulate and refine quartz, then refine the real quartz data if they can be found.
# Run by `make demo`, with the environment's commands first on PATH.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$root/demo/simulated" "$root/demo/real"

echo "== Simulating 40 degrees of quartz with a crystal of two thicknesses"
cd "$root/demo/simulated"
dials.hybrid_simulate "$root/examples/quartz.cif" scan.images=40 \
    thickness.mean=450,800 thickness.width=40,60

echo "== Refining it"
dials.hybrid_refine simulated.expt simulated.refl "$root/examples/quartz.cif"
simulated="$PWD/dials.hybrid_refine.html"

# The places where the processed quartz data may be: beside the checkout, in a folder that the
# user names, in the cache of dials_data
find_quartz() {
    for folder in "${DIALS_HYBRID_DATA:-$root/../shared/data}/quartz_dials" \
        "${DIALS_DATA:-$HOME/.cache/dials_data}/quartz_processed"; do
        if [ -f "$folder/integrated.expt" ] && [ -f "$folder/integrated.refl" ]; then
            echo "$folder"
            return
        fi
    done
}

quartz=$(find_quartz)
if [ -z "$quartz" ] && command -v dials.data >/dev/null 2>&1; then
    echo "== Fetching the real quartz data with dials.data"
    dials.data get -q quartz_processed || true
    quartz=$(find_quartz)
fi

if [ -n "$quartz" ]; then
    echo "== Refining the real quartz data of $quartz"
    cd "$root/demo/real"
    dials.hybrid_refine "$quartz/integrated.expt" "$quartz/integrated.refl" \
        "$root/examples/quartz.cif"
    echo "Report on the real data:      $PWD/dials.hybrid_refine.html"
else
    echo "The real quartz data are not here; 'dials.data get quartz_processed' (pip install"
    echo "dials_data) fetches them, and make demo will then refine them too."
fi
echo "Report on the simulated data: $simulated"
