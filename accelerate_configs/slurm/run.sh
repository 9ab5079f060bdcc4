#!/usr/bin/env bash
# What the batch scripts end in: one srun task a rank, and back into the queue when a signal stopped the trainer with a
# checkpoint saved. Their arguments are options of train_accel.py. docs/slurm.md explains it.
set -euo pipefail

# ---- the site -------------------------------------------------------------------------------------------------------
# module load cuda                      # what the environment needs; the nodes must see it and the repository
PYTHON="${CODEC_PYTHON:-$PWD/.venv/bin/python}"
# export NCCL_SOCKET_IFNAME=ib0         # several nodes: the network between them, where NCCL does not find it
MAX_RESTARTS=100                        # a job that comes back more often is held to make no progress
# ---------------------------------------------------------------------------------------------------------------------

PREEMPTED=75 # the trainer's exit status: stopped by a signal, with a checkpoint saved

# By its own id the last task of an array would stand for the whole array.
JOB="$SLURM_JOB_ID"
[[ -z "${SLURM_ARRAY_JOB_ID:-}" ]] || JOB="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"

SIGNALLED='' # whether the time limit's signal came

main() {
    say "job $JOB on $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, restart ${SLURM_RESTART_COUNT:-0}"
    [[ -x "$PYTHON" ]] || refuse "no Python at $PYTHON: run make setup, or set CODEC_PYTHON"
    [[ -f train_accel.py ]] || refuse "no train_accel.py in $PWD: submit from the root of the repository"

    MASTER_ADDR="$(address_of_first_node)"
    export MASTER_ADDR
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node differ; below the ephemeral ports
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    export TQDM_MININTERVAL="${TQDM_MININTERVAL:-30}" # seconds between updates of the bar, which goes to a file here

    local status=0
    train "$@" || status=$?
    if stopped_early "$status" && [[ "$(state)" == RUNNING ]]; then
        requeue
    fi
    say "job $JOB ends with status $status"
    exit "$status"
}

# Runs the ranks, passes on the signal that comes before the time limit, and returns their status.
train() {
    # A task ignores USR1 until the trainer takes it; before that it would end the task.
    # Ranks end one after the other with status 75: no rank's end may kill the others, but none waits for ever either.
    # shellcheck disable=SC2016  # expanded by each task
    srun --mpi=none --kill-on-bad-exit=0 --wait=600 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '
        trap "" USR1
        export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
        exec "$@"' task "$PYTHON" train_accel.py "$@" &
    local step=$! status interrupted
    trap 'SIGNALLED=yes interrupted=yes; pass_on "$step" &' USR1
    while true; do
        interrupted='' status=0
        wait "$step" || status=$?
        [[ -n "$interrupted" ]] || return "$status" # else that was the status of the wait, not of the ranks
    done
}

# srun hands USR1 to every process of the step. In the first minutes again and again: a trainer that still starts may not
# take signals yet. Not later: one that is about to exit does not take them any more.
# shellcheck disable=SC2317  # the trap calls it
pass_on() {
    say "USR1: the trainer saves and stops"
    while kill -USR1 "$1" 2>/dev/null && ((SECONDS < 120)); do sleep 30; done
}

# Whether the trainer was stopped with a checkpoint, or killed by the signal before it could begin.
stopped_early() {
    (($1 == PREEMPTED)) || { [[ -n "$SIGNALLED" ]] && (($1 > 128)); }
}

# RUNNING, unless the job was cancelled, is past its time limit, or is being requeued by SLURM itself.
state() {
    scontrol show job -o "$JOB" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p'
}

requeue() {
    ((${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)) || refuse "stopped after $MAX_RESTARTS restarts; submit it again to go on"
    say "stopped early; back into the queue"
    scontrol requeue "$JOB"
    exit 0
}

# The address that SLURM itself uses for the node of rank 0.
address_of_first_node() {
    local nodes address
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    address="$(scontrol show node -o "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')"
    echo "${address:-${nodes[0]}}"
}

say() { echo "slurm: $*"; }

refuse() {
    echo "error: $*" >&2
    exit 2
}

main "$@"
