%% Whom a node takes for whom: sessions that are resumed, the three ways to prove who one is, and who is let in.
-module(identity_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("public_key/include/public_key.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([resumed/1, not_with_another_cookie/1, cookies_apart/1, cookie_for_one_node/1, weak_cookies/1,
         certificate_files/1, by_host/1, another_nodes_certificate/1, says_another_name/1, out_of_time/1, renewed/1, replaced_twice/1, verify_none/1,
         allowed/1, allowed_by_host/1, no_secret_is_shown/1, slow_and_not_on_a_scheduler/1]).

-import(quic_dist_test_trust, [ca/1, leaf/2, file/2, names/2, files/3, start_certified/3, start_with/4, start_with/5, quic_dist_env/1,
                               with_optfile/3, write_term/3, connects/1, refused/2, renewed_identity/1, logged/2, has_logged/2, said/2]).

-define(LIB, quic_dist_test_lib).
-define(CA, quic_dist_test_ca).
-define(ENV, fun quic_dist_test_trust:quic_dist_env/1).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [resumed, not_with_another_cookie, cookies_apart, cookie_for_one_node, weak_cookies,
     certificate_files, by_host, another_nodes_certificate, says_another_name, out_of_time, renewed, replaced_twice, verify_none,
     allowed, allowed_by_host, no_secret_is_shown, slow_and_not_on_a_scheduler].

init_per_suite(Config) -> quic_dist_test_trust:init_suite(Config).
end_per_suite(Config) -> ?LIB:end_suite(Config).
init_per_testcase(Case, Config) -> ?LIB:init_case(Case, [{C, "it is about QUIC's certificates"} || C <- all()], Config).
end_per_testcase(_Case, Config) -> ?LIB:end_case(Config).

%%% Sessions

resumed(_Config) ->
    ok = ?LIB:not_at_midnight(30),
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "b"}]),
    [false, true, true] = [meet(A, B) || _ <- [1, 2, 3]],
    %% The other way round it is the first time; a new cookie on both begins anew.
    [false, true] = [meet(B, A) || _ <- [1, 2]],
    [true = ?LIB:call(N, erlang, set_cookie, [qdt_another_cookie_1234]) || N <- [A, B]],
    ok = renewed_identity([A, B]),
    [false, true] = [meet(A, B) || _ <- [1, 2]],
    %% A node that was killed reads its own tickets, and has lost those of others.
    Again = kill_and_restart(A, B, #{cookie => "qdt_another_cookie_1234"}),
    [true, true] = [meet(A, Again) || _ <- [1, 2]],
    [false, true] = [meet(Again, A) || _ <- [1, 2]],
    %% One that lets anybody in is not the same any more, nor is it when it verifies again.
    Careless = kill_and_restart(A, Again, #{cookie => "qdt_another_cookie_1234", args => ["-quic_dist_verify", "verify_none"]}),
    [false, true] = [element(1, met(A, Careless)) || _ <- [1, 2]],
    Careful = kill_and_restart(A, Careless, #{cookie => "qdt_another_cookie_1234"}),
    [false, true] = [meet(A, Careful) || _ <- [1, 2]],
    %% With another cookie, a node of the same name gets nowhere with what was kept.
    Other = kill_and_restart(A, Careful, #{cookie => "qdt_third_cookie_567890"}),
    refused(A, Other),
    refused(Other, A).

kill_and_restart(A, #{name := Name} = B, Options) ->
    ?LIB:kill(B),
    ?LIB:await_alone(A),
    ?LIB:start(Options#{name => Name}).

%% Whether a session was resumed, as both see it; they are apart again afterwards.
meet(A, B) ->
    {Resumed, cookie, cookie} = met(A, B),
    Resumed.

%% With how either verified the other.
met(A, B) ->
    ok = ?LIB:connect(A, B),
    %% the ticket has come when something that was sent after it has
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(B)]),
    #{resumed := Resumed, verified := ByA, peer_name := PeerName} = ?LIB:connection(A, B),
    #{resumed := Resumed, verified := ByB} = ?LIB:connection(B, A),
    NodeB = ?LIB:node(B),
    NodeB = binary_to_atom(PeerName),
    ok = ?LIB:disconnect(A, B),
    {Resumed, ByA, ByB}.

not_with_another_cookie(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "a"}, #{tag => "b"}]),
    false = meet(A, B),
    true = ?LIB:call(A, erlang, set_cookie, [qdt_another_cookie_1234]),
    refused(A, B),
    said(A, "cookie differs"),
    %% and the other way round, where A judges by its new cookie
    ok = renewed_identity([A]),
    refused(B, A).

%%% The cookie

%% Two clusters on one network: nothing of the one reaches Erlang code of the other. What dist_util would have seen, it would have
%% logged; the acceptor, too.
cookies_apart(_Config) ->
    [A, B] = ?LIB:start_all([#{tag => "a", args => info_level()}, #{tag => "b", args => info_level(), cookie => "qdt_other_cluster_56"}]),
    refused(A, B),
    refused(B, A),
    [begin
         said(N, "refused a connection from"),
         false = has_logged(N, "distribution handshake"),
         false = has_logged(N, "Connection attempt")
     end || N <- [A, B]],
    %% With the other's cookie for the other node, A joins it, and stays with its own.
    C = ?LIB:start(#{tag => "c"}),
    true = ?LIB:call(A, erlang, set_cookie, [?LIB:node(B), qdt_other_cluster_56]),
    ok = ?LIB:connect(A, B),
    NameB = atom_to_binary(?LIB:node(B)),
    #{verified := cookie, peer_name := NameB} = ?LIB:connection(A, B),
    ok = ?LIB:disconnect(A, B),
    ok = ?LIB:connect(A, C),
    refused(C, B).

%% erlang:set_cookie/2, on inet_tcp and here: a node has one cookie for another, whichever of them dials. More in set_cookie_SUITE.
cookie_for_one_node(Config) ->
    Files = fun(Name) ->
        #{cert := Cert, key := Key, ca := Ca} = files(Config, Name, leaf(Config, Name)),
        ["-quic_dist_cert", Cert, "-quic_dist_key", Key, "-quic_dist_cacert", Ca]
    end,
    Tcp = one_node("inet_tcp", fun(_) -> [] end),
    ct:log("inet_tcp: ~p", [Tcp]),
    [{a_has_the_cookie_of_b, true, true}, {both_have_a_third, true, true}, {each_has_that_of_the_other, false, false}] = Tcp,
    Tcp = one_node("quic", Files),
    Tcp = one_node("quic", fun(_) -> [] end).

%% Whether A can dial B, and B can dial A; nobody else of B's cluster is let in, and what was said both ways over the one connection
%% arrives.
one_node(Carrier, ToArgs) ->
    Options = fun(Cookie) ->
        Name = ?LIB:name("one"),
        #{name => Name, carrier => Carrier, cookie => Cookie, args => ToArgs(Name)}
    end,
    [begin
         [A, B, C] = All = ?LIB:start_all([Options(Cookie) || Cookie <- ["qdt_cluster_of_a_78", "qdt_cluster_of_b_90", "qdt_cluster_of_b_90"]]),
         {NodeA, NodeB} = {?LIB:node(A), ?LIB:node(B)},
         [true = ?LIB:call(H, erlang, set_cookie, [Other, Cookie])
          || {H, Other, Cookie} <- [{A, NodeB, CookieOfA} || CookieOfA =/= none] ++ [{B, NodeA, CookieOfB} || CookieOfB =/= none]],
         Results = [begin
              Can = ?LIB:call(From, net_kernel, connect_node, [To]),
              [begin
                   ?LIB:await_connected(A, B),
                   [pong = ?LIB:call(H, net_adm, ping, [Other]) || {H, Other} <- [{A, NodeB}, {B, NodeA}]],
                   ok = ?LIB:disconnect(A, B)
               end || Can],
              Can
          end || {From, To} <- [{A, NodeB}, {B, NodeA}]],
         [refused(X, Y) || {X, Y} <- [{A, C}, {C, A}]],
         [?LIB:kill(H) || H <- All],
         list_to_tuple([What | Results])
     end || {What, CookieOfA, CookieOfB} <- [{a_has_the_cookie_of_b, qdt_cluster_of_b_90, none},
                                             {both_have_a_third, qdt_third_cookie_12, qdt_third_cookie_12},
                                             {each_has_that_of_the_other, qdt_cluster_of_b_90, qdt_cluster_of_a_78}]].

info_level() -> ["-kernel", "logger_level", "info"].

weak_cookies(_Config) ->
    Warned = fun(Cookie) ->
        Node = ?LIB:start(#{tag => "w", cookie => Cookie}),
        has_logged(Node, "the cookie is weak")
    end,
    [true, true, false, false] = [Warned(C) || C <- ["secret", "aaaaaaaaaaaaaaaaaaaaaaaaa", "ABCDEFGHIJKLMNOPQRST", "x7Gq_2p0Zt9w"]],
    ok.

%%% Certificate files

%% A chain, an encrypted key, an option file, at boot; traffic both ways, and what info/0 says of it.
certificate_files(Config) ->
    ok = ?LIB:not_at_midnight(30),
    Middle = ?CA:authority("middle", ca(Config)),
    [A, B] = Nodes = start_certified(Config, [Middle, Middle], fun(Files) -> with_optfile(Config, Files, "a pass phrase") end),
    ok = ?LIB:connect(A, B),
    [begin
         #{verified := certificate, peer_name := Name, resumed := false} = ?LIB:connection(X, Y),
         Name = atom_to_binary(?LIB:node(Y)),
         pong = ?LIB:call(X, net_adm, ping, [?LIB:node(Y)])
     end || {X, Y} <- [{A, B}, {B, A}]],
    ok = ?LIB:disconnect(A, B),
    ok = ?LIB:connect(A, B),
    #{resumed := true, verified := certificate} = ?LIB:connection(B, A),
    [false = has_logged(N, "certificate") || N <- Nodes],
    %% It is killed and started again, with the same files: its key and the cookie together are what reads its tickets.
    Args = ["-quic_dist_optfile", file(Config, maps:get(name, B) ++ ".opt")],
    Again = kill_and_restart(A, B, #{args => Args}),
    ok = ?LIB:connect(A, Again),
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(Again)]),
    #{resumed := true, verified := certificate} = ?LIB:connection(Again, A),
    ok = ?LIB:disconnect(A, Again),
    %% The key alone does not: nothing has changed for A, which still has its session.
    Other = kill_and_restart(A, Again, #{args => Args, cookie => "qdt_another_cookie_1234"}),
    true = ?LIB:call(A, erlang, set_cookie, [?LIB:node(Other), qdt_another_cookie_1234]),
    ok = ?LIB:connect(A, Other),
    #{resumed := false, verified := certificate} = ?LIB:connection(Other, A),
    %% A node with the cookie and no certificate of the authority's is a stranger.
    X = ?LIB:start(#{tag => "x"}),
    refused(X, A),
    refused(A, X),
    said(A, "unable to get local issuer certificate").

%% A certificate that names the host, and no node.
by_host(Config) ->
    Options = fun(Names) -> ?CA:leaf(ca(Config), #{names => Names}) end,
    [A, B, C] = [start_with(Config, ?LIB:name("h"), Options(Names), ?ENV)
                 || Names <- [[{ip, {127, 0, 0, 1}}], [{dns, "h.example.com"}, {ip, {127, 0, 0, 1}}], [{dns, "localhost"}, {ip, {127, 0, 0, 2}}]]],
    ok = ?LIB:connect(A, B),
    #{peer_name := <<>>, verified := certificate} = ?LIB:connection(A, B),
    refused(A, C),
    said(A, "is that of localhost, 127.0.0.2, not of"),
    refused(C, A),
    said(A, "and its certificate is that of localhost, 127.0.0.2").

%% B shows the certificate of C, which is valid. It is refused by those whom it dials and by those who dial it; its own log says why.
another_nodes_certificate(Config) ->
    [A] = start_certified(Config, [ca(Config)], ?ENV),
    B = start_with(Config, ?LIB:name("b"), leaf(Config, "c@127.0.0.1"), ?ENV),
    said(B, "this node's certificate is that of c@127.0.0.1, not of"),
    refused(A, B),
    said(A, "the peer's certificate is that of c@127.0.0.1, not of " ++ atom_to_list(?LIB:node(B))),
    says_another_name(A, B).

says_another_name(Config) ->
    [A] = start_certified(Config, [ca(Config)], ?ENV),
    %% On the same host even: what counts is the node.
    Thief = leaf(Config, "thief@127.0.0.1"),
    B = start_with(Config, ?LIB:name("b"), Thief, ?ENV),
    says_another_name(A, B).

says_another_name(A, B) ->
    refused(B, A),
    said(A, "it says that it is " ++ atom_to_list(?LIB:node(B)) ++ ", and its certificate is that of "),
    [] = ?LIB:call(A, erlang, nodes, [connected]).

out_of_time(Config) ->
    [A] = start_certified(Config, [ca(Config)], ?ENV),
    [begin
         Name = ?LIB:name("t"),
         B = start_with(Config, Name, ?CA:leaf(ca(Config), #{names => [{node, Name}], valid => Valid}), ?ENV),
         refused(A, B),
         refused(B, A),
         Date = "[A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8} 20[0-9]{2} GMT",
         said(A, "the peer's certificate \\(" ++ Name ++ "\\) " ++ Says ++ " " ++ Date),
         said(B, "this node's certificate \\(" ++ Name ++ "\\) " ++ Says ++ " " ++ Date)
     end || {Valid, Says} <- [{{-7200, -3600}, "has expired on"}, {{3600, 7200}, "is not valid before"}]],
    ok.

%% New files are used for the next connection; half of them are not.
renewed(Config) ->
    Name = ?LIB:name("b"),
    [A] = start_certified(Config, [ca(Config)], ?ENV),
    B = start_with(Config, Name, leaf(Config, "c@127.0.0.1"), ?ENV),
    refused(A, B),
    New = leaf(Config, Name),
    #{cert := Cert, key := Key} = names(Config, Name),
    ?CA:write(Cert, ?CA:pem(New)),
    ?LIB:wait_until(said, fun() -> logged(B, "stays as it is: .*the key is not that of the certificate") end, 20000),
    ?CA:write(Key, ?CA:key_pem(New)),
    ok = renewed_identity([B]),
    connects([A, B]).

%% The second time while an identity is made of the first.
replaced_twice(Config) ->
    Name = ?LIB:name("b"),
    [A] = start_certified(Config, [ca(Config)], ?ENV),
    Pem = fun(Of) -> Leaf = leaf(Config, Of), [?CA:pem(Leaf), ?CA:key_pem(Leaf)] end,
    B = start_with(Config, Name, leaf(Config, "c@127.0.0.1"), fun(#{cert := Cert, ca := Ca}) ->
        ?CA:write(Cert, Pem("c@127.0.0.1")),
        ["-quic_dist_cert", Cert, "-quic_dist_cacert", Ca]
    end),
    #{cert := Cert} = names(Config, Name),
    {Wrong, Right} = {Pem("d@127.0.0.1"), Pem(Name)},
    ok = ?LIB:run(B, fun() ->
        quic_dist_test_trust:while_it_is_made({identity_files, 4}, fun(_) -> ?CA:write(Cert, Wrong) end, fun() -> ?CA:write(Cert, Right) end)
    end, 60000),
    connects([A, B]).

%% Whoever it is: a certificate of nobody's authority, or none but the cookie's of another cluster.
verify_none(Config) ->
    None = ["-quic_dist_verify", "verify_none"],
    [A, B] = ?LIB:start_all([#{tag => "a", args => None}, #{tag => "b", args => None}]),
    [said(N, "verify_none: nodes are not verified") || N <- [A, B]],
    [false = has_logged(N, "who says that it is") || N <- [A, B]],
    ok = ?LIB:connect(A, B),
    #{verified := none, peer_name := <<>>} = ?LIB:connection(A, B),
    #{verified := none} = ?LIB:connection(B, A),
    said(A, "verify_none: who says that it is " ++ atom_to_list(?LIB:node(B))),
    said(B, "verify_none: who says that it is " ++ atom_to_list(?LIB:node(A))),
    %% A self-signed certificate, as erlang_quic's guide makes one.
    Self = ?CA:authority("localhost"),
    C = start_with(Config, ?LIB:name("c"), Self, fun(#{cert := Cert, key := Key}) ->
        ["-config", write_term(Config, "none.config", [{quic, [{dist, [{cert_file, Cert}, {key_file, Key}, {verify, verify_none}]}]}])]
    end),
    ok = ?LIB:connect(A, C),
    #{verified := none} = ?LIB:connection(C, A),
    %% It has to be asked for: a node that verifies does not take C, and takes the others by their cookie.
    D = ?LIB:start(#{tag => "d"}),
    ok = ?LIB:connect(D, A),
    #{verified := cookie} = ?LIB:connection(D, A),
    refused(D, C),
    refused(C, D).

%%% Who is let in

allowed(_Config) ->
    [NameA, NameB, NameC] = [?LIB:name("l") || _ <- [1, 2, 3]],
    [A, B, C] = ?LIB:start_all([#{name => NameA, args => ["-quic_dist_allow", NameB, NameC] ++ info_level()},
                                #{name => NameB}, #{name => NameC}]),
    D = ?LIB:start(#{tag => "d"}),
    ok = ?LIB:connect(B, A),
    ok = ?LIB:connect(A, C),
    refused(D, A),
    said(A, "is that of no node that is allowed"),
    refused(A, D),
    said(A, atom_to_list(?LIB:node(D)) ++ " is not allowed"),
    false = has_logged(A, "Connection attempt from"),
    %% A host.
    E = ?LIB:start(#{tag => "e", args => ["-quic_dist_allow", "127.0.0.1"]}),
    ok = ?LIB:connect(D, E),
    %% net_kernel's own list, on a running node.
    ok = ?LIB:call(D, net_kernel, allow, [[?LIB:node(E)]]),
    refused(B, D),
    said(D, "is that of no node that is allowed"),
    false = has_logged(D, "Connection attempt from").

%% A certificate that is good for a node in the list and for others as well.
allowed_by_host(Config) ->
    [NameA, NameB, NameC] = [?LIB:name("l") || _ <- [1, 2, 3]],
    ByHost = ?CA:leaf(ca(Config), #{names => [{ip, {127, 0, 0, 1}}]}),
    Allow = fun(Files) -> quic_dist_env(Files) ++ ["-quic_dist_allow", NameB] end,
    A = start_with(Config, NameA, ByHost, Allow),
    [B, C] = [start_with(Config, Name, ByHost, ?ENV) || Name <- [NameB, NameC]],
    ok = ?LIB:connect(B, A),
    ok = ?LIB:disconnect(B, A),
    refused(C, A),
    said(A, NameC ++ " is not allowed"),
    %% It may name both.
    D = start_with(Config, ?LIB:name("l"), ByHost, fun(Files) ->
        quic_dist_env(Files) ++ ["-quic_dist", "allow", "['" ++ NameC ++ "']"]
    end),
    ok = ?LIB:kill(B),
    Both = ?CA:leaf(ca(Config), #{names => [{node, NameB}, {node, NameC}]}),
    E = start_with(Config, NameB, Both, ?ENV),
    refused(E, D),
    said(D, NameB ++ " is not allowed"),
    ok = ?LIB:connect(E, A),
    ok = ?LIB:connect(C, D),
    %% Where nobody is verified there is the name alone.
    [F, G] = [?LIB:start(#{name => ?LIB:name("l"), args => ["-quic_dist_verify", "verify_none" | Args]}) || Args <- [["-quic_dist_allow", NameB], []]],
    refused(G, F),
    said(F, atom_to_list(?LIB:node(G)) ++ " is not allowed").

%%% Secrets

%% Not by the node itself, not in the report of a server that has ended, not in a crash dump. (The cookie is in every dump: `auth' has it, and it
%% is an atom.)
no_secret_is_shown(Config) ->
    {Password, Cookie} = {"kGh7_pass_phrase_nobody_may_see", "qdt_kq8Tz1Wn4Yb_nobody_may_see"},
    Start = fun(ToArgs) ->
        Name = ?LIB:name("s"),
        #{key := #'ECPrivateKey'{privateKey = Key}} = Leaf = leaf(Config, Name),
        Lines = [L || L <- binary:split(?CA:key_pem(Leaf), <<"\n">>, [global]), byte_size(L) > 40],
        Node = start_with(Config, Name, Leaf, ToArgs, [{"ERL_CRASH_DUMP", file(Config, Name ++ ".dump")}, {"ERL_CRASH_DUMP_SECONDS", "-1"}]),
        {Node, Name, [Key | Lines]}
    end,
    Certified = [Start(fun(Files) -> with_optfile(Config, Files, Password) end), Start(?ENV)],
    C = ?LIB:start(#{tag => "s", cookie => Cookie}),
    Words = [list_to_binary(Word) || Word <- [Password, Cookie]],
    [begin
         none_in(what_it_says(Node), Words ++ Keys),
         ok = ?LIB:call(Node, sys, terminate, [quic_dist_endpoint, {for_a_test, 1}]),
         said(Node, "for_a_test"),
         ?LIB:wait_until(listens, fun() -> ?LIB:run(Node, fun listens/0) end, 20000),
         none_in(what_it_says(Node), Words ++ Keys)
     end || {Node, _, Keys} <- [{C, none, []} | Certified]],
    [begin
         %% What has to be found, as everything may be held by a process.
         Held = [{Form, crypto:strong_rand_bytes(24)} || Form <- [{base64, 0}, {base64, 1}, {base64, 2}, list]] ++ [{raw, <<"qdt_shown_", (list_to_binary(Name))/binary>>}],
         _ = ?LIB:run(Node, fun() -> hold(Held) end),
         {ok, _} = ?LIB:call(Node, timer, apply_after, [200, erlang, halt, ["test"]]),
         _ = ?LIB:await_exit(Node, 60000),
         {ok, Text} = file:read_file(file(Config, Name ++ ".dump")),
         Dump = {Text, lists_in(Text)},
         [{Form, true} = {Form, lists:member(Form, shown(Secret, Dump))} || {Form, Secret} <- Held],
         none_in(Dump, [list_to_binary(Password) | Keys]),
         none_in(?LIB:output(Node), [list_to_binary(Password) | Keys])
     end || {Node, Name, Keys} <- Certified].

%% A server of that name listens, and has forgotten what it told itself to.
listens() ->
    try
        _ = sys:get_state(quic_dist_endpoint),
        [] =/= [I || #{mode := listening} = I <- quic_dist_endpoint:info(inet)]
    catch
        exit:_ -> false
    end.

what_it_says(Node) ->
    Said = ?LIB:run(Node, fun() ->
        [quic_dist:info(), sys:get_status(quic_dist_endpoint), sys:get_state(quic_dist_endpoint)]
    end),
    iolist_to_binary([io_lib:format("~0p ~0w", [Said, Said]), ?LIB:output(Node)]).

%% In these forms.
hold(Held) ->
    Self = self(),
    Pid = spawn(fun() ->
        Terms = [case Form of
                     %% on its heap: OTP 25 leaves others out
                     {base64, Offset} -> list_to_binary([lists:duplicate(Offset, $x), Secret, $x]);
                     list -> binary_to_list(Secret);
                     raw -> binary_to_atom(Secret)
                 end || {Form, Secret} <- Held],
        Self ! {self(), holds},
        receive {show, To} -> To ! Terms end
    end),
    receive {Pid, holds} -> Pid end.

none_in(Text, Secrets) when is_binary(Text) -> none_in({Text, <<>>}, Secrets);
none_in(Dump, Secrets) ->
    [] = [{Secret, Forms} || Secret <- Secrets, Forms <- [shown(Secret, Dump)], Forms =/= []].

%% The forms in which it is to be seen.
shown(Secret, {Text, Lists}) ->
    [Form || {Form, Pattern} <- [{raw, Secret}, {hex, binary:encode_hex(Secret)}, {hex, string:lowercase(binary:encode_hex(Secret))},
                                 {numbers, iolist_to_binary(lists:join(",", [integer_to_list(B) || <<B>> <= Secret]))}
                                 | [{{base64, O}, in_base64(Secret, O)} || O <- [0, 1, 2]]],
             binary:match(Text, Pattern) =/= nomatch]
        ++ [list || binary:match(Lists, Secret) =/= nomatch].

%% Without the characters that what is next to it has a part in.
in_base64(Secret, Offset) ->
    Encoded = base64:encode(<<0:(8 * Offset), Secret/binary, 0>>),
    First = (8 * Offset + 5) div 6,
    binary:part(Encoded, First, 8 * (Offset + byte_size(Secret)) div 6 - First).

%% A dump has each cell of a list in a line of its own: `Address:lI107|HNext'.
lists_in(Text) ->
    {match, Cells} = re:run(Text, "^([0-9A-F]+):lI([0-9]+)\\|(?:H([0-9A-F]+)|N)", [global, multiline, {capture, all_but_first, binary}]),
    Bytes = maps:from_list([{A, {binary_to_integer(V), Next}} || [A, V | Next] <- Cells, byte_size(V) < 4]),
    Follow = fun F(A) ->
        case Bytes of
            #{A := {V, [Next]}} when V < 256 -> [V | F(Next)];
            #{A := {V, []}} when V < 256 -> [V];
            #{} -> []
        end
    end,
    Inner = maps:from_list([{Next, []} || {_, [Next]} <- maps:values(Bytes)]),
    iolist_to_binary([[Follow(A), "\n"] || A <- maps:keys(Bytes), not is_map_key(A, Inner)]).

%% What is slow by intention is slow within bounds, and keeps no scheduler from others.
slow_and_not_on_a_scheduler(Config) ->
    Name = ?LIB:name("s"),
    A = start_with(Config, Name, leaf(Config, Name), ?ENV),
    #{cert := Cert, key := Key, ca := Ca} = names(Config, Name),
    Side = #{certfile => list_to_binary(Cert), keyfile => list_to_binary(Key), cacertfile => list_to_binary(Ca), depth => 10},
    Ways = [{identity_new, [<<"qdt_a_cookie_12345">>, list_to_binary(Name), false]},
            {identity_files, [<<"qdt_a_cookie_12345">>, list_to_binary(Name), Side, Side]}],
    [begin
         %% A short time in which the machine stands still can make one seem long. On a scheduler it would be long each time.
         {Times, Long} = undisturbed(fun() -> ?LIB:run(A, fun() -> measured(fun() -> {ok, _} = make(Way), ok end, 5) end) end),
         ct:log("~w: ~w ms of a processor", [Function, Times]),
         true = lists:min(Times) =< 500,
         %% it is what it is for
         true = lists:min(Times) >= 20,
         true = length(Long) < 3
     end || {Function, _} = Way <- Ways],
    %% Such a message would have come.
    {_, [_ | _]} = ?LIB:run(A, fun() ->
        [N, D] = [binary:decode_unsigned(rand:bytes(Size)) || Size <- [320000, 160000]],
        measured(fun() -> true = N rem D > 0 end, 1)
    end).

make({Function, Args}) ->
    case apply(quic_dist_nif, Function, Args) of
        {ok, Identity} -> {ok, Identity};
        {ok, Identity, _} -> {ok, Identity}
    end.

%% What it takes of a processor, in ms, as others may have the machine as well; and when a scheduler was kept for more than 50.
measured(Fun, Times) ->
    Self = self(),
    _ = erlang:system_monitor(Self, [{long_schedule, 50}]),
    Took = [begin
                {Before, _} = statistics(runtime),
                {Pid, Monitor} = spawn_monitor(Fun),
                receive {'DOWN', Monitor, process, Pid, normal} -> ok end,
                {After, _} = statistics(runtime),
                {Pid, After - Before}
            end || _ <- lists:seq(1, Times)],
    %% the message comes before the end of what it is about is known, or soon after
    timer:sleep(100),
    _ = erlang:system_monitor(undefined),
    {[T || {_, T} <- Took], [Info || {Pid, _} <- Took, Info <- long(Pid)]}.

long(Pid) -> receive {monitor, Pid, long_schedule, Info} -> [Info | long(Pid)] after 0 -> [] end.

%% Without a time in which the machine stood still, if there is one.
undisturbed(Fun) -> undisturbed(Fun, 10).

undisturbed(Fun, Left) ->
    Since = quic_dist_test_clock:now_ms(),
    Result = Fun(),
    case quic_dist_test_clock:stalled(Since) of
        Stalled when Stalled > 0, Left > 0 -> undisturbed(Fun, Left - 1);
        _ -> Result
    end.
