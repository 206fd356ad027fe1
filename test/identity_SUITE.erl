%% Whom a node takes for whom: sessions that are resumed, the three ways to prove who one is, and who is let in.
-module(identity_SUITE).
-include_lib("common_test/include/ct.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([resumed/1, not_with_another_cookie/1, cookies_apart/1, cookie_for_one_node/1, weak_cookies/1,
         certificate_files/1, by_host/1, options_of_erlang_quic/1, options_of_ssl/1, flags/1, bad_options/1,
         another_nodes_certificate/1, says_another_name/1, revoked/1, out_of_time/1, renewed/1, verify_none/1,
         allowed/1, no_secret_is_shown/1]).

-define(LIB, quic_dist_test_lib).
-define(CA, quic_dist_test_ca).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [resumed, not_with_another_cookie, cookies_apart, cookie_for_one_node, weak_cookies,
     certificate_files, by_host, options_of_erlang_quic, options_of_ssl, flags, bad_options,
     another_nodes_certificate, says_another_name, revoked, out_of_time, renewed, verify_none,
     allowed, no_secret_is_shown].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    ?LIB:init_suite([{ca, ?CA:authority("test authority")} | Config]).
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

%% The endpoint looks at the cookie once a second.
renewed_identity(Nodes) ->
    [?LIB:wait_until(renewed, fun() -> logged(N, "new connections use a new identity") =:= true end, 5000) || N <- Nodes],
    ok.

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
    [A, B, C] = [start_with(Config, ?LIB:name("h"), Options(Names), fun quic_dist_env/1)
                 || Names <- [[{ip, {127, 0, 0, 1}}], [{dns, "h.example.com"}, {ip, {127, 0, 0, 1}}], [{dns, "localhost"}, {ip, {127, 0, 0, 2}}]]],
    ok = ?LIB:connect(A, B),
    #{peer_name := <<>>, verified := certificate} = ?LIB:connection(A, B),
    refused(A, C),
    said(A, "is that of localhost, 127.0.0.2, not of"),
    refused(C, A),
    said(A, "and its certificate is that of localhost, 127.0.0.2").

%% What sys.config has for erlang_quic.
options_of_erlang_quic(Config) ->
    Sys = fun(#{cert := Cert, key := Key, ca := Ca, name := Name}) ->
        Dist = [{cert_file, Cert}, {key_file, list_to_binary(Key)}, {cacert_file, Ca}, {verify, verify_peer},
                {discovery_module, quic_discovery_static}, {nodes, []}],
        ["-config", write_term(Config, Name ++ ".config", [{quic, [{dist, Dist}, {dist_port, 4433}]}])]
    end,
    connects(start_certified(Config, [ca(Config), ca(Config)], Sys)).

%% What an inet_tls node has.
options_of_ssl(Config) ->
    connects(start_certified(Config, [ca(Config), ca(Config)], fun(#{name := Name} = Files) ->
        [Server, Client] = [ssl_options(Files), ssl_options(Files)],
        Term = [{server, [{fail_if_no_peer_cert, true}, {secure_renegotiate, true} | Server]}, {client, [{versions, ['tlsv1.3']} | Client]}],
        ["-ssl_dist_optfile", write_term(Config, Name ++ ".opt", Term)]
    end)).

ssl_options(#{cert := Cert, key := Key, ca := Ca}) ->
    [{certfile, Cert}, {keyfile, Key}, {cacertfile, Ca}, {verify, verify_peer}].

flags(Config) ->
    [A] = start_certified(Config, [ca(Config)], fun(#{cert := Cert, key := Key, ca := Ca}) ->
        ["-quic_dist_cert", Cert, "-quic_dist_key", Key, "-quic_dist_cacert", Ca]
    end),
    [B] = start_certified(Config, [ca(Config)], fun(#{cert := Cert, key := Key, ca := Ca}) ->
        lists:append([["-quic_dist_opt", Role ++ "certfile", Cert, Role ++ "keyfile", Key, Role ++ "cacertfile", Ca, Role ++ "verify", "verify_peer",
                       Role ++ "secure_renegotiate", "true"] || Role <- ["server_", "client_"]])
    end),
    connects([A, B]).

connects([A, B]) ->
    ok = ?LIB:connect(A, B),
    #{verified := certificate} = ?LIB:connection(A, B),
    #{verified := certificate} = ?LIB:connection(B, A),
    pong = ?LIB:call(A, net_adm, ping, [?LIB:node(B)]).

%% The node does not start, and says which option it is.
bad_options(Config) ->
    #{cert := Cert, key := Key, ca := Ca} = files(Config, "bad@127.0.0.1", leaf(Config, "bad@127.0.0.1")),
    Encrypted = ?CA:write(file(Config, "bad.enc"), ?CA:key_pem(leaf(Config, "bad@127.0.0.1"), "right")),
    Lines = [
        {["-quic_dist_cert", Cert, "-quic_dist_key", Key], "{bad_option,cacertfile,"},
        {["-quic_dist_cacert", Ca], "{bad_option,certfile,"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", "/nowhere.pem", "-quic_dist_cacert", Ca], "/nowhere.pem: No such file"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", Encrypted, "-quic_dist_cacert", Ca], "password"},
        {["-quic_dist_cert", Cert, "-quic_dist_key", Ca, "-quic_dist_cacert", Ca], "no private key in it"},
        {["-quic_dist_verify", "verify_maybe"], "{bad_option,verify,"},
        {["-quic_dist_optfile", "/nowhere.opt"], "/nowhere.opt: enoent"},
        {["-quic_dist_opt", "server_verify_fun", "x"], "{bad_option,server,"}],
    Booted = [{Line, ?LIB:boot(#{tag => "bad", args => Args})} || {Args, Line} <- Lines],
    [] = [{Line, Result} || {Line, Result} <- Booted, not failed_with(Line, Result)],
    ok.

failed_with(Line, {error, {exit_status, _, Output}}) -> re:run(Output, Line) =/= nomatch;
failed_with(_, _) -> false.

%% B shows the certificate of C, which is valid. It is refused by those whom it dials and by those who dial it; its own log says why.
another_nodes_certificate(Config) ->
    [A] = start_certified(Config, [ca(Config)], fun quic_dist_env/1),
    B = start_with(Config, ?LIB:name("b"), leaf(Config, "c@127.0.0.1"), fun quic_dist_env/1),
    said(B, "this node's certificate is that of c@127.0.0.1, not of"),
    refused(A, B),
    said(A, "the peer's certificate is that of c@127.0.0.1, not of " ++ atom_to_list(?LIB:node(B))),
    says_another_name(A, B).

says_another_name(Config) ->
    [A] = start_certified(Config, [ca(Config)], fun quic_dist_env/1),
    %% On the same host even: what counts is the node.
    Thief = leaf(Config, "thief@127.0.0.1"),
    B = start_with(Config, ?LIB:name("b"), Thief, fun quic_dist_env/1),
    says_another_name(A, B).

says_another_name(A, B) ->
    refused(B, A),
    said(A, "it says that it is " ++ atom_to_list(?LIB:node(B)) ++ ", and its certificate is that of "),
    [] = ?LIB:call(A, erlang, nodes, [connected]).

revoked(Config) ->
    [NameA, NameB, NameC] = [?LIB:name("r") || _ <- [1, 2, 3]],
    [LeafA, LeafB, LeafC] = [leaf(Config, N) || N <- [NameA, NameB, NameC]],
    Crl = ?CA:write(file(Config, "crl.pem"), ?CA:revoked(ca(Config), [LeafC])),
    Checked = fun(Files) -> quic_dist_env(Files) ++ ["-quic_dist", "crlfile", quoted(Crl), "-quic_dist", "crl_check", "true"] end,
    A = start_with(Config, NameA, LeafA, Checked),
    B = start_with(Config, NameB, LeafB, Checked),
    C = start_with(Config, NameC, LeafC, fun quic_dist_env/1),
    connects([A, B]),
    refused(C, A),
    refused(A, C),
    said(A, "certificate \\(" ++ NameC ++ "\\): certificate revoked"),
    %% The list is looked at again when it is written again, and what was verified before does not count any more.
    ok = ?LIB:disconnect(A, B),
    ?CA:write(Crl, ?CA:revoked(ca(Config), [LeafC, LeafB])),
    ok = renewed_identity([A]),
    refused(B, A),
    said(A, "certificate \\(" ++ NameB ++ "\\): certificate revoked").

out_of_time(Config) ->
    [A] = start_certified(Config, [ca(Config)], fun quic_dist_env/1),
    [begin
         Name = ?LIB:name("t"),
         B = start_with(Config, Name, ?CA:leaf(ca(Config), #{names => [{node, Name}], valid => Valid}), fun quic_dist_env/1),
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
    [A] = start_certified(Config, [ca(Config)], fun quic_dist_env/1),
    B = start_with(Config, Name, leaf(Config, "c@127.0.0.1"), fun quic_dist_env/1),
    refused(A, B),
    New = leaf(Config, Name),
    #{cert := Cert, key := Key} = names(Config, Name),
    ?CA:write(Cert, ?CA:pem(New)),
    ?LIB:wait_until(said, fun() -> logged(B, "stays as it is: .*the key is not that of the certificate") end, 5000),
    ?CA:write(Key, ?CA:key_pem(New)),
    ok = renewed_identity([B]),
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

%%% Secrets

no_secret_is_shown(Config) ->
    Password = "kGh7_pass_phrase_nobody_may_see",
    Name = ?LIB:name("s"),
    Leaf = leaf(Config, Name),
    Dump = file(Config, "dump"),
    A = start_with(Config, Name, Leaf, fun(Files) -> with_optfile(Config, Files, Password) end,
                   [{"ERL_CRASH_DUMP", Dump}, {"ERL_CRASH_DUMP_SECONDS", "-1"}]),
    Info = ?LIB:run(A, fun() ->
        %% what went is collected
        timer:sleep(200),
        io_lib:format("~p ~p ~p", [quic_dist:info(), sys:get_status(quic_dist_endpoint), sys:get_state(quic_dist_endpoint)])
    end),
    nomatch = string:find(Info, Password),
    {ok, _} = ?LIB:call(A, timer, apply_after, [200, erlang, halt, ["test"]]),
    _ = ?LIB:await_exit(A, 20000),
    {ok, Text} = file:read_file(Dump),
    true = byte_size(Text) > 100000,
    %% A dump has binaries in base 64 and strings as lists of numbers; this one is there.
    {_, _} = binary:match(Text, base64:encode(list_to_binary(Name))),
    [nomatch = binary:match(Text, S) || S <- [list_to_binary(Password), base64:encode(list_to_binary(Password))]],
    [_, Line | _] = binary:split(?CA:key_pem(Leaf), <<"\n">>, [global]),
    [nomatch = binary:match(Text, S) || S <- [Line, base64:encode(Line)]],
    nomatch = string:find(?LIB:output(A), Password).

%%% Tools

ca(Config) -> ?config(ca, Config).

leaf(Config, Name) -> ?CA:leaf(ca(Config), #{names => [{node, Name}]}).

file(Config, Name) -> filename:join(?config(priv_dir, Config), Name).

names(Config, Name) ->
    #{cert => file(Config, Name ++ ".pem"), key => file(Config, Name ++ ".key"), ca => file(Config, "ca.pem"), name => Name}.

files(Config, Name, Leaf) ->
    #{cert := Cert, key := Key, ca := Ca} = Names = names(Config, Name),
    ?CA:write(Cert, ?CA:pem(Leaf)),
    ?CA:write(Key, ?CA:key_pem(Leaf)),
    %% a file that is written again is read again
    filelib:is_file(Ca) orelse ?CA:write(Ca, ?CA:pem(ca(Config))),
    Names#{leaf => Leaf}.

%% A node for each authority, with a certificate in its own name.
start_certified(Config, Authorities, ToArgs) ->
    [begin
         Name = ?LIB:name("f"),
         start_with(Config, Name, ?CA:leaf(Ca, #{names => [{node, Name}]}), ToArgs)
     end || Ca <- Authorities].

start_with(Config, Name, Leaf, ToArgs) -> start_with(Config, Name, Leaf, ToArgs, []).

start_with(Config, Name, Leaf, ToArgs, Env) ->
    ?LIB:start(#{name => Name, args => ToArgs(files(Config, Name, Leaf)), env => Env}).

quic_dist_env(#{cert := Cert, key := Key, ca := Ca}) ->
    lists:append([["-quic_dist", Option, quoted(File)] || {Option, File} <- [{"certfile", Cert}, {"keyfile", Key}, {"cacertfile", Ca}]]).

quoted(File) -> "\"" ++ File ++ "\"".

with_optfile(Config, #{cert := Cert, key := Key, ca := Ca, name := Name, leaf := Leaf}, Password) ->
    ?CA:write(Key, ?CA:key_pem(Leaf, Password)),
    Options = [{certfile, Cert}, {keyfile, Key}, {password, Password}, {cacertfile, Ca}, {verify, verify_peer}],
    ["-quic_dist_optfile", write_term(Config, Name ++ ".opt", [{server, Options}, {client, Options}])].

write_term(Config, Name, Term) -> ?CA:write(file(Config, Name), io_lib:format("~p.~n", [Term])).

refused(A, B) ->
    false = ?LIB:call(A, net_kernel, connect_node, [?LIB:node(B)]),
    false = lists:member(?LIB:node(A), ?LIB:call(B, erlang, nodes, [connected])),
    ok.

logged(Node, Line) -> re:run(?LIB:output(Node), Line) =/= nomatch.

%% Whether it has been logged until now: a node's terminal is read a little later than it is written.
has_logged(Node, Line) ->
    Mark = lists:concat(["until now: ", erlang:unique_integer([positive])]),
    ok = ?LIB:call(Node, logger, notice, [Mark]),
    said(Node, Mark),
    logged(Node, Line).

%% Soon.
said(Node, Line) -> ?LIB:wait_until({said, Line}, fun() -> logged(Node, Line) end, 5000).
