%% A bad network in user space: a UDP relay that drops, duplicates, delays and so reorders, and alters datagrams by a seeded random
%% number generator. Each client gets a socket of its own towards the server, which therefore tells the clients apart.
%%
%% It can also keep copies of the first datagrams of clients, and send what a test gives it on a client's own path: to the server that
%% is a datagram from a peer it knows.
-module(quic_dist_relay).

-export([start/1, stop/1, set/2, fair/0, rebind/1, stats/1, captured/1, inject/2]).

-export_type([options/0]).

-type options() :: #{
    to => inet:port_number(),          %% the server's port at 127.0.0.1
    loss => float(),                   %% 0.0 to 1.0: of each datagram
    lossy => both | to_server | to_client,   %% the direction of the loss
    duplicate => float(),
    mutate => float(),                 %% a bit flipped, cut short, made longer, or its end taken from another one
    reorder => float(),                %% share of datagrams that wait 1 to reorder_ms, while others overtake them
    reorder_ms => pos_integer(),
    mtu => pos_integer(),              %% larger datagrams vanish
    delay_ms => non_neg_integer(),     %% of every datagram
    rate => pos_integer() | infinity,  %% bytes a second each way; what would wait more than rate_ms is lost
    rate_ms => pos_integer(),
    capture => non_neg_integer(),      %% how many datagrams of clients to keep
    seed => term()
}.

-record(state, {options :: options(), rand :: rand:state(), front :: gen_udp:socket(),
                clients = #{} :: #{{inet:ip_address(), inet:port_number()} => gen_udp:socket()},
                servers = #{} :: #{gen_udp:socket() => {inet:ip_address(), inet:port_number()}},
                captured = [] :: [binary()],
                before = <<0>> :: binary(),
                %% when each way has sent what it has taken, in microseconds
                free = #{} :: #{to_server | to_client => integer()},
                stats = #{forwarded => 0, dropped => 0, duplicated => 0, delayed => 0, mutated => 0} :: #{atom() => non_neg_integer()}}).

-define(LOOPBACK, {127, 0, 0, 1}).
-define(BATCH, 200).

%% Linked to the caller: it ends with the test. Gives the port that clients dial.
-spec start(options()) -> {pid(), inet:port_number()}.
start(Options) ->
    Caller = self(),
    Pid = spawn_link(fun() ->
        Front = open(),
        {ok, Port} = inet:port(Front),
        Caller ! {self(), Port},
        Defaults = #{loss => 0.0, lossy => both, duplicate => 0.0, mutate => 0.0, reorder => 0.0, reorder_ms => 5, mtu => 65535, delay_ms => 0,
                     rate => infinity, rate_ms => 50, capture => 0, seed => 1},
        All = #{seed := Seed} = maps:merge(Defaults, Options),
        loop(#state{options = All, rand = rand:seed_s(exsss, erlang:phash2(Seed)), front = Front})
    end),
    receive {Pid, Port} -> {Pid, Port} after 5000 -> error(deadline) end.

-spec stop(pid()) -> ok.
stop(Pid) ->
    unlink(Pid),
    exit(Pid, kill),
    ok.

%% Changes options of a running relay.
-spec set(pid(), options()) -> ok.
set(Pid, Options) -> ask(Pid, {set, Options}).

%% What takes back whatever it does to datagrams by chance.
-spec fair() -> options().
fair() -> #{loss => 0.0, lossy => both, duplicate => 0.0, reorder => 0.0, mutate => 0.0}.

%% As a NAT that has forgotten its clients: each gets another socket towards the server with its next datagram, and what the
%% server sends to the old ones is lost.
-spec rebind(pid()) -> ok.
rebind(Pid) -> ask(Pid, rebind).

-spec stats(pid()) -> #{atom() => non_neg_integer()}.
stats(Pid) -> ask(Pid, stats).

%% The first datagrams that came from clients, oldest first.
-spec captured(pid()) -> [binary()].
captured(Pid) -> ask(Pid, captured).

%% Sends a datagram to the server from the address that it knows as the (last) client's.
-spec inject(pid(), binary()) -> ok.
inject(Pid, Datagram) -> ask(Pid, {inject, Datagram}).

ask(Pid, Request) ->
    Ref = erlang:monitor(process, Pid),
    Pid ! {ask, self(), Ref, Request},
    receive
        {Ref, Answer} -> erlang:demonitor(Ref, [flush]), Answer;
        {'DOWN', Ref, process, Pid, Reason} -> error({relay, Reason})
    after 10000 -> error({deadline, Request})
    end.

open() ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, ?LOOPBACK}, {active, ?BATCH}, {recbuf, 4194304}, {sndbuf, 4194304}, {buffer, 65536},
                                    {read_packets, 100}]),
    Socket.

loop(#state{front = Front, servers = Servers} = S) ->
    receive
        {udp, Front, Ip, Port, Datagram} ->
            {Server, S1} = server_of({Ip, Port}, capture(Datagram, S)),
            loop(pass(Datagram, {Server, to_server}, S1));
        {udp, Server, _, _, _} when not is_map_key(Server, Servers) ->
            loop(count(dropped, S));
        {udp, Server, _, _, Datagram} ->
            loop(pass(Datagram, {Front, maps:get(Server, Servers)}, S));
        {udp_passive, Socket} ->
            ok = inet:setopts(Socket, [{active, ?BATCH}]),
            loop(S);
        {udp_error, _, _} ->
            loop(S);
        {later, Datagram, Path} ->
            send(Datagram, Path, S),
            loop(S);
        {ask, From, Ref, Request} ->
            {Answer, S1} = answer(Request, S),
            From ! {Ref, Answer},
            loop(S1)
    end.

answer({set, Options}, #state{options = Old} = S) -> {ok, S#state{options = maps:merge(Old, Options)}};
answer(rebind, S) -> {ok, S#state{clients = #{}, servers = #{}}};
answer(stats, #state{stats = Stats} = S) -> {Stats, S};
answer(captured, #state{captured = Captured} = S) -> {lists:reverse(Captured), S};
answer({inject, Datagram}, #state{servers = Servers} = S) ->
    send(Datagram, {lists:last(maps:keys(Servers)), to_server}, S),
    {ok, S}.

capture(Datagram, #state{options = #{capture := Count}, captured = Captured} = S) when length(Captured) < Count ->
    S#state{captured = [Datagram | Captured]};
capture(_, S) -> S.

server_of(Client, #state{clients = Clients, servers = Servers} = S) ->
    case Clients of
        #{Client := Server} -> {Server, S};
        #{} ->
            Server = open(),
            {Server, S#state{clients = Clients#{Client => Server}, servers = Servers#{Server => Client}}}
    end.

%% What becomes of one datagram.
pass(Datagram, _Path, #state{options = #{mtu := Mtu}} = S) when byte_size(Datagram) > Mtu ->
    count(dropped, S);
pass(Datagram, Path, #state{options = #{loss := Loss, lossy := Lossy, duplicate := Duplicate}} = S0) ->
    {Fate, S1} = uniform(S0),
    {Twin, S2} = uniform(S1),
    {Passed, S3} = mutate(Datagram, S2),
    Lost = Fate < Loss andalso (Lossy =:= both orelse Lossy =:= direction(Path)),
    if
        Lost -> count(dropped, S3);
        Twin < Duplicate -> later_or_now(Datagram, Path, later_or_now(Passed, Path, count(duplicated, S3)));
        true -> later_or_now(Passed, Path, S3)
    end.

mutate(Datagram, #state{options = #{mutate := Share}, before = Before} = S0) ->
    {Luck, S1} = uniform(S0#state{before = Datagram}),
    case Luck < Share of
        false -> {Datagram, S1};
        true ->
            {How, S2} = uniform(S1),
            {Where, S3} = uniform(S2),
            At = trunc(Where * byte_size(Datagram)),
            <<Head:At/binary, Byte, Tail/binary>> = Datagram,
            Mutant = case trunc(How * 4) of
                0 -> <<Head/binary, (Byte bxor (1 bsl (At rem 8))), Tail/binary>>;
                1 -> Head;
                2 -> <<Datagram/binary, (binary:part(Before, 0, min(At, byte_size(Before))))/binary>>;
                3 -> Cut = min(At, byte_size(Before)), <<Head/binary, (binary:part(Before, Cut, byte_size(Before) - Cut))/binary>>
            end,
            {binary:part(Mutant, 0, min(byte_size(Mutant), 65507)), count(mutated, S3)}
    end.

direction({_, to_server}) -> to_server;
direction({_, _Client}) -> to_client.

later_or_now(Datagram, Path, #state{options = #{reorder := Reorder, reorder_ms := Most, delay_ms := Delay}} = S0) ->
    {Luck, S1} = uniform(S0),
    {Wait, S2} = if
        Luck < Reorder -> {Share, S} = uniform(S1), {1 + trunc(Share * Most), count(delayed, S)};
        true -> {0, S1}
    end,
    case queued(byte_size(Datagram), direction(Path), S2) of
        {full, S3} -> count(dropped, S3);
        {Queued, S3} ->
            case Delay + Wait + Queued of
                0 -> send(Datagram, Path, S3);
                Ms -> erlang:send_after(Ms, self(), {later, Datagram, Path})
            end,
            count(forwarded, S3)
    end.

%% How long it waits for those before it.
queued(_, _, #state{options = #{rate := infinity}} = S) -> {0, S};
queued(Size, Way, #state{options = #{rate := Rate, rate_ms := Most}, free = Free} = S) ->
    Now = erlang:monotonic_time(microsecond),
    From = max(Now, maps:get(Way, Free, Now)),
    if
        From - Now > Most * 1000 -> {full, S};
        true ->
            Until = From + Size * 1000000 div Rate,
            {(Until - Now) div 1000, S#state{free = Free#{Way => Until}}}
    end.

send(Datagram, {Socket, to_server}, #state{options = #{to := Port}}) -> _ = gen_udp:send(Socket, ?LOOPBACK, Port, Datagram);
send(Datagram, {Socket, {Ip, Port}}, _) -> _ = gen_udp:send(Socket, Ip, Port, Datagram).

uniform(#state{rand = Rand} = S) ->
    {Value, Next} = rand:uniform_s(Rand),
    {Value, S#state{rand = Next}}.

count(What, #state{stats = Stats} = S) -> S#state{stats = maps:update_with(What, fun(N) -> N + 1 end, Stats)}.
