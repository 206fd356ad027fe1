%% A path between two network namespaces, made by examples/quic_dist_link.rs, with an EPMD in each namespace.
-module(quic_dist_bench_link).

-export([available/0, start/2, stop/1, places/1]).

-export_type([link/0]).

-opaque link() :: #{link := port(), epmds := [port()], places := {map(), map()}}.

%% Whether there can be one, or why not.
-spec available() -> true | {false, string()}.
available() ->
    Program = program(),
    case {os:cmd("id -u"), os:find_executable("ip"), filelib:is_regular(Program)} of
        {"0\n", Ip, true} when Ip =/= false -> true;
        {"0\n", false, _} -> {false, "there is no `ip' (Debian: iproute2)"};
        {"0\n", _, false} -> {false, "there is no " ++ Program};
        _ -> {false, "network namespaces need root"}
    end.

%% Options are those of the program: rate, delay, queue, loss.
-spec start(string(), [string()]) -> link().
start(Name0, Options) ->
    %% names of namespaces are of the whole machine
    Name = "qdb" ++ os:getpid() ++ Name0,
    Link = quic_dist_bench_node:start_program(program(), Options ++ ["--name", Name]),
    {NsA, AddressA, NsB, AddressB} = await_ready(Link, []),
    Epmds = [start_epmd(Ns) || Ns <- [NsA, NsB]],
    #{link => Link, epmds => Epmds,
      places => {#{namespace => NsA, host => AddressA}, #{namespace => NsB, host => AddressB}}}.

await_ready(Link, Seen) ->
    case quic_dist_bench_node:read_line(Link, 10000) of
        {line, <<"ready ", Rest/binary>>} ->
            [NsA, AddressA, NsB, AddressB] = string:lexemes(binary_to_list(Rest), " "),
            {NsA, AddressA, NsB, AddressB};
        {line, Line} -> await_ready(Link, [Line | Seen]);
        Other -> error({no_link, Other, lists:reverse(Seen)})
    end.

start_epmd(Ns) ->
    Ip = os:find_executable("ip"),
    _ = os:cmd(lists:concat([Ip, " -n ", Ns, " link set lo up"])),
    Epmd = quic_dist_bench_node:start_program(Ip, ["netns", "exec", Ns, "env", "-u", "ERL_EPMD_ADDRESS", "epmd"]),
    await_epmd(Ip, Ns, 100),
    Epmd.

await_epmd(Ip, Ns, Tries) ->
    case os:cmd(lists:concat([Ip, " netns exec ", Ns, " epmd -names >/dev/null 2>&1 && echo up"])) of
        "up\n" -> ok;
        _ when Tries > 0 -> timer:sleep(50), await_epmd(Ip, Ns, Tries - 1);
        _ -> error({no_epmd, Ns})
    end.

%% Where nodes run: the a side and the b side, for quic_dist_bench_node:start/1.
-spec places(link()) -> {map(), map()}.
places(#{places := Places}) -> Places.

%% No node may be left in the namespaces.
-spec stop(link()) -> ok.
stop(#{link := Link, epmds := Epmds}) ->
    lists:foreach(fun quic_dist_bench_node:stop_program/1, Epmds),
    quic_dist_bench_node:stop_program(Link).

program() -> os:getenv("QUIC_DIST_BENCH_LINK").
