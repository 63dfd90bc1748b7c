#!/bin/bash
# Train on a Slurm cluster, and put the job back into the queue until the run has come to its end:
#   sbatch --nodes=2 scripts/slurm.sh configs/pretrain/base.yaml output_dir=/shared/runs/base
# docs/cluster.md says what the lines are for.
#SBATCH --job-name=m3ae
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))

srun --kill-on-bad-exit=0 bash -c \
  'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python scripts/train.py "$@" --resume' m3ae "$@"
status=$?
if [ "$status" -eq 75 ]; then # stopped before its end, with a checkpoint
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
