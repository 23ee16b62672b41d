#!/bin/bash
docker rm -f vllm_ds4
sudo kill -9 $(pgrep -f 'VLLM::Worker') 2>/dev/null
sudo sync; echo 3 | sudo tee /proc/sys/vm/drop_caches
sudo rm -f /dev/shm/psm_* /dev/shm/sem.mp-*
