#!/bin/bash
# A run on Slurm that puts itself back into the queue before its time is over, and goes on there:
#
#     sbatch examples/slurm.sh photos/ --out runs/s
#
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# torchrun passes USR1 on instead of dying of it, and gives its processes longer than 30 seconds to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=240
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # restarts on several machines: pytorch#135712

# One task of an array by both numbers: the number of one of them is the array's too, and means all of it.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}

requeue() {
    trap '' USR1
    kill -USR1 "$run"
    wait "$run" # until it has saved
    echo "time is nearly over: job $job goes back into the queue"
    scontrol requeue "$job" && exit 0
    echo "warning: job $job could not be requeued; submit the same command again, and it continues" >&2
    exit 75 # as the processes: stopped and saved, not done
}
trap requeue USR1

# The first machine, on which this script runs, and a port that another job there will hardly have.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-gpu}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="${host:-$HOSTNAME}:${PORT:-$((20000 + SLURM_JOB_ID % 10000))}" \
    -m byol train "$@" &
run=$!
wait "$run"
