# What scripts share that start nodes of their own on this machine: an EPMD, a cookie and a work folder that nobody else has, and an end
# that leaves no process behind. Sourced after common.sh, by bash with -e; never run.

ebin=$project/_build/default/lib/quic_dist/ebin
[ -e "$ebin/quic_dist.beam" ] && [ -e "$project/priv/quic_dist_nif.so" ] || die "not built yet: run make"

work=$(mktemp -d)
# processes to be killed at the end
pids=()
cleanup() {
  trap - EXIT INT TERM
  exec 2>/dev/null
  local pid
  # the last one started, first: what it has started itself ends with it
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    pid=${pids[i]}
    kill -KILL "$pid" 2>/dev/null || continue
    while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
  done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# An EPMD on a port that is free now, and in $work/home a cookie: in a file, because arguments can be seen by every user.
own_world() {
  ERL_EPMD_PORT=$(erl -noshell -eval '{ok, L} = gen_tcp:listen(0, [{ip, {127,0,0,1}}]), {ok, P} = inet:port(L), io:put_chars(integer_to_list(P)), halt().')
  export ERL_EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1
  epmd -port "$ERL_EPMD_PORT" >/dev/null 2>&1 </dev/null &
  pids+=($!)
  disown # the shell need not announce that it was killed
  mkdir -m 700 "$work/home"
  od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$work/home/.erlang.cookie"
  chmod 400 "$work/home/.erlang.cookie"
  for _ in {1..100}; do
    epmd -names >/dev/null 2>&1 && break
    sleep 0.05
  done
}
