%% Two hosts in one machine: two network namespaces joined by a pair of virtual Ethernet devices, an EPMD in each. Their addresses,
%% interfaces and firewalls are the test's to change. Or a third one between them, the router: a NAT, behind which side a is. It takes root.
-module(quic_dist_test_net).

-export([available/0, start/0, start_nat/0, forget/1, stop/1, end_case/1, start_nodes/3, start_nodes/4, namespace/2, host/2, ip/3, sh/3]).

-export_type([net/0, side/0]).

-type side() :: a | b | router.
-opaque net() :: #{number := 0..255, names := #{side() := string()}, epmds := [port()]}.

-define(DEVICE, "eth").

%% Whether there can be one, or why not.
-spec available() -> true | {false, string()}.
available() ->
    case {os:cmd("id -u"), os:find_executable("ip")} of
        {_, false} -> {false, "there is no `ip' (Debian: iproute2)"};
        {"0\n", _} ->
            Name = name(probe),
            case os:cmd("ip netns add " ++ Name) of
                "" -> "" = os:cmd("ip netns del " ++ Name), true;
                Error -> {false, "no network namespaces: " ++ Error}
            end;
        _ -> {false, "network namespaces need root"}
    end.

name(What) -> lists:concat(["qdt", os:getpid(), What]).

-spec start() -> net().
start() ->
    Net = #{names := #{a := A, b := B}} = namespaces([a, b]),
    run(["ip -n ", A, " link add " ?DEVICE " type veth peer name " ?DEVICE " netns ", B]),
    [begin
         %% the second address stays when the first one goes
         "" = sh(Net, Side, "echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries"),
         "" = ip(Net, Side, "link set lo up"),
         "" = ip(Net, Side, "link set " ?DEVICE " up"),
         "" = ip(Net, Side, ["addr add ", host(Net, Side), "/24 dev " ?DEVICE])
     end || Side <- [a, b]],
    with_epmds(Net).

%% The router gives what goes from a to b its own address and a port by chance, and lets in what it has an entry for only, as they do. It takes
%% `nft' besides.
-spec start_nat() -> {ok, net()} | {error, string()}.
start_nat() ->
    Net = #{names := #{router := Router} = Names} = namespaces([a, b, router]),
    [begin
         run(["ip -n ", maps:get(Side, Names), " link add " ?DEVICE " type veth peer name to_", atom_to_list(Side), " netns ", Router]),
         "" = ip(Net, router, ["link set to_", atom_to_list(Side), " up"]),
         "" = ip(Net, router, ["addr add ", gateway(Net, Side), "/24 dev to_", atom_to_list(Side)]),
         "" = ip(Net, Side, "link set lo up"),
         "" = ip(Net, Side, "link set " ?DEVICE " up"),
         "" = ip(Net, Side, ["addr add ", host(Net, Side), "/24 dev " ?DEVICE]),
         "" = ip(Net, Side, ["route add default via ", gateway(Net, Side)])
     end || Side <- [a, b]],
    "" = sh(Net, router, "echo 1 > /proc/sys/net/ipv4/ip_forward"),
    case sh(Net, router, ["nft \"add table ip t; "
                          "add chain ip t i { type filter hook input priority 0; policy drop; }; "
                          "add chain ip t n { type nat hook postrouting priority 100; }; add rule ip t n oifname to_b masquerade fully-random\""]) of
        "" -> {ok, with_epmds(Net)};
        Said -> stop(Net), {error, Said}
    end.

%% The NAT forgets whom it knows: its address goes, and with it (as `masquerade' has it) all entries, and comes back. How many milliseconds
%% that took at most.
-spec forget(net()) -> non_neg_integer().
forget(Net) ->
    Began = erlang:monotonic_time(millisecond),
    Address = [gateway(Net, b), "/24 dev to_b"],
    "" = sh(Net, router, ["ip addr del ", Address, " && ip addr add ", Address]),
    erlang:monotonic_time(millisecond) - Began.

gateway(Net, Side) -> filename:rootname(host(Net, Side)) ++ ".254".

namespaces(Sides) ->
    Names = maps:from_list([{Side, name(Side)} || Side <- Sides]),
    [begin
         %% of a case that could not end
         _ = os:cmd("ip netns del " ++ N ++ " 2>/dev/null"),
         run(["ip netns add ", N])
     end || N <- maps:values(Names)],
    #{number => erlang:phash2({os:getpid(), erlang:unique_integer()}, 250) + 1, names => Names, epmds => []}.

with_epmds(#{names := #{a := A, b := B}} = Net) -> Net#{epmds := [epmd(N) || N <- [A, B]]}.

run(Command) -> "" = os:cmd(lists:flatten(Command)).

%% It ends with this VM at the latest.
epmd(Name) ->
    Script = "exec 3<&0; \"$@\" & pid=$!; (cat <&3 >/dev/null; kill $pid) & wait $pid",
    Port = open_port({spawn_executable, "/bin/sh"},
                     [{args, ["-c", Script, "sh", os:find_executable("ip"), "netns", "exec", Name, epmd()]}, exit_status, stderr_to_stdout]),
    quic_dist_test_lib:wait_until(epmd, fun() -> os:cmd(["ip netns exec ", Name, " ", epmd(), " -names | head -c 4"]) =:= "epmd" end, 10000),
    Port.

epmd() ->
    case filelib:wildcard(filename:join([code:root_dir(), "erts-*", "bin", "epmd"])) of
        [Path | _] -> Path;
        [] -> os:find_executable("epmd")
    end.

-spec stop(net()) -> ok.
stop(#{names := Names, epmds := Epmds}) ->
    [port_close(Port) || Port <- Epmds, erlang:port_info(Port) =/= undefined],
    [run(["ip netns del ", Name]) || Name <- maps:values(Names)],
    ok.

%% For end_per_testcase: ends the case's nodes, and its network where it had one.
-spec end_case(list()) -> ok.
end_case(Config) ->
    ok = quic_dist_test_lib:end_case(Config),
    case proplists:get_value(net, Config) of
        undefined -> ok;
        Net -> stop(Net)
    end.

%% A node on each side, with these arguments.
-spec start_nodes(net(), Carrier :: string(), [string()]) -> {quic_dist_test_lib:handle(), quic_dist_test_lib:handle()}.
start_nodes(Net, Carrier, Args) -> start_nodes(Net, Carrier, Args, #{}).

-spec start_nodes(net(), Carrier :: string(), [string()], quic_dist_test_lib:options()) ->
          {quic_dist_test_lib:handle(), quic_dist_test_lib:handle()}.
start_nodes(Net, Carrier, Args, Options) ->
    [A, B] = quic_dist_test_lib:start_all([Options#{name => lists:concat([Side, Carrier, "@", host(Net, Side)]), carrier => Carrier,
                                                    namespace => namespace(Net, Side), args => ["-start_epmd", "false" | Args]}
                                           || Side <- [a, b]]),
    {A, B}.

%% For quic_dist_test_lib:start/1.
-spec namespace(net(), side()) -> string().
namespace(#{names := Names}, Side) -> maps:get(Side, Names).

%% The address that a side begins with, as nodes' names have it; others in its subnet are the test's to give.
-spec host(net(), side()) -> string().
host(#{number := Number, names := #{router := _}}, b) -> lists:concat(["10.79.", Number, ".2"]);
host(#{number := Number}, Side) -> lists:concat(["10.78.", Number, ".", case Side of a -> 1; b -> 2 end]).

%% What `ip' says to these words, on one side.
-spec ip(net(), side(), iodata()) -> string().
ip(#{names := Names}, Side, Words) -> os:cmd(lists:flatten(["ip -n ", maps:get(Side, Names), " ", Words])).

%% What a shell on one side says.
-spec sh(net(), side(), iodata()) -> string().
sh(#{names := Names}, Side, Script) -> os:cmd(lists:flatten(["ip netns exec ", maps:get(Side, Names), " sh -c '", Script, "'"])).
