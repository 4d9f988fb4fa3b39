from benchmarks.peers import Take
